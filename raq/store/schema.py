"""What records must look like to be read: each kind's keys, types and bounds. Imports neither torch nor ray.

Records are files that anybody may have changed, and older versions of raq have left fewer keys: what is optional here
is what those lack. Unknown keys are left alone. Numbers are finite and of sizes that can be; an error names the key.
"""

import math
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raq.errors import UserError, first_problem
from raq.experiment.fields import HALF_NAMES, MODE_KINDS, MODE_OF, OTHER_TOOLS
from raq.store.results import RESULTS, SWEEPS
from raq.store.sweep_results import NAMES_OF_TOP1, as_read, metric_of_sweep
from raq.store.types import Fingerprint, RunRecord, SettingsOfBenchStage, StageRecord, Values

MAX_DEPTH = 40


@cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def check_run(run: Values, place: str) -> None:
    """UserError, naming the place and the key, unless this is a run's record."""
    check_depth(run, place)
    _check(RunRecord, run, place)
    sweep = run["settings"].get("sweep") or {}
    if sweep.get("layers") and "select" not in sweep:
        raise _wrong(place, "settings.sweep.select", "Field required")
    for name, stage in run["stages"].items():
        kind, _, candidate = name.partition("/")
        if kind == "evaluate" and not _is_candidate(candidate, run["settings"]):
            raise _wrong(place, f"stages.{name}", "there is no such candidate in settings")
        program = program_of(candidate)
        if kind == "evaluate" and program != "fp32" and program not in run["stages"]:
            raise _wrong(place, f"stages.{program}", "Field required: it is evaluated")
        if not candidate and _is_candidate(kind, run["settings"]) and stage["kind"] != kind_of(kind):
            raise _wrong(place, f"stages.{name}.kind", f"{stage['kind']}, and {kind_of(kind)} is meant")
        if kind in ("evaluate", "lower", "bench") and stage["kind"] != kind:
            raise _wrong(place, f"stages.{name}.kind", f"{stage['kind']}, and {kind} is meant")
    if any(name.startswith("evaluate/") for name in run["stages"]) and "evaluate/fp32" not in run["stages"]:
        raise _wrong(place, "stages", "the baseline, evaluate/fp32, is missing")


def _is_candidate(name: str, settings: Values) -> bool:
    kind = kind_of(name)
    if name in OTHER_TOOLS:
        return settings["ptq"] is not None and name in settings["ptq"].get("others", ())
    if name in MODE_OF:
        return settings["ptq"] is not None and MODE_OF[name] in settings["ptq"].get("mode", ("static",))
    return kind == "fp32" or (kind in ("half", "ptq", "qat") and settings.get(kind) is not None)


def program_of(name: str) -> str:
    """The program of a candidate, by its name: ptq of ptq-openvino, mixed-1 of mixed-1-openvino, and so on.

    fp32 of what other tools quantize.
    """
    if name in OTHER_TOOLS:
        return "fp32"
    parts = name.split("-")
    return "-".join(parts[: 2 if parts[0] in ("mixed", "weight") else 1])


def kind_of(name: str) -> str:
    """How a candidate is quantized, by its name: fp32, half, weight_only, dynamic, ptq or qat."""
    program = program_of(name)
    if name in OTHER_TOOLS:
        return "ptq"
    if program in MODE_KINDS:
        return MODE_KINDS[program]
    return "half" if program in HALF_NAMES.values() else "ptq" if program.startswith("mixed-") else program


def _check_alien_keys(results: Values, place: str) -> None:
    """UserError for what the requirements of a run look at, in the results of a stage that has none of it."""
    for key in (
        "graph_int8_mac_share",
        "audit",
        "float_copies",
        "train_correct",
        "executed_int8_mac_share",
        "executed_half_mac_share",
    ):
        if key in results:
            raise _wrong(place, f"results.{key}", "not a result of this kind of stage")


def check_stage(record: Values, place: str, kind: str) -> None:
    """UserError, naming the place and the key, unless this is the record of a finished stage of this kind."""
    check_depth(record, place)
    _check(StageRecord, record, place)
    if "read_files" in record["results"]:
        _check(dict[str, Fingerprint], record["results"]["read_files"], place, "results.read_files.")
    if record["kind"] != kind:
        raise _wrong(place, "kind", f"{record['kind']}, and {kind} is asked for")
    if kind == "bench":
        _check(SettingsOfBenchStage, record.get("settings"), place, "settings.")
    if kind in RESULTS:
        read = as_read(record["results"]) if kind in SWEEPS else record["results"]
        _check(RESULTS[kind], read, place, "results.", NAMES_OF_TOP1 if "metric" not in read else {})
        if kind in SWEEPS:
            _check_shares(read, place)
        for number, row in enumerate(record["results"].get("parity", [])):
            compared = row["against"] is not None and not row["equal"]
            if compared and (row["sqnr_db"] is None or (row["changed"] is None and row["top1"] is not None)):
                raise _wrong(place, f"results.parity.{number}", "it is compared, and its distance is missing")
    if kind == "bench":
        _check_rounds(record["results"]["rows"], place)
        _check_measurement(record, place)
    if kind == "qat_sweep":
        _check_trials(as_read(record["results"])["trials"], place)
    if kind == "evaluate":
        _check_evaluation(record["results"], place)
    elif kind != "lower":
        _check_alien_keys(record["results"], place)


def check_depth(value: Any, place: str, left: int = MAX_DEPTH) -> None:
    """UserError for values nested deeper than any record is, and for numbers that are none."""
    if left == 0:
        raise _wrong(place, "", f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(place, "", f"{value} is no number of a record")
    if isinstance(value, int) and abs(value) > 2**63:
        raise _wrong(place, "", "a number that is larger than any record has")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        check_depth(inner, place, left - 1)


def _check_evaluation(results: Values, place: str) -> None:
    """UserError for counts that do not go together, and for what comes only with another key."""
    for key in ("value", "resampled") if "metric" in results else ("top1", "correct"):
        if key not in results:
            raise _wrong(place, f"results.{key}", "Field required")
    for right, all_of_them in (("correct", "test_images"), ("train_correct", "train_images")):
        if right in results and results[right] > results.get(all_of_them, -1):
            raise _wrong(place, f"results.{right}", f"more than {all_of_them}")
    for key, needed in (
        ("train_correct", "classes"),
        ("graph_int8_mac_share", "float_layers"),
        ("executed_int8_mac_share", "executed_layers"),
        ("executed_int8_mac_share", "float_by_choice_share"),
    ):
        if key in results and needed not in results:
            raise _wrong(place, f"results.{needed}", "Field required")


def _check_shares(results: Values, place: str) -> None:
    """UserError for values of a metric that is a share, outside of 0 to 1."""
    values = [results["baseline_value"], results.get("all_quantized", {}).get("value")]
    values += [trial.get("value") for trial in results["trials"]]
    values += [row["mean_value"] for row in results.get("curve", [])]
    if metric_of_sweep(results).in_points:
        for value in values:
            if value is not None and not (isinstance(value, int | float) and 0 <= value <= 1):
                raise _wrong(place, "results", f"a share of {value!r}")


def _check_trials(trials: list[Values], place: str) -> None:
    """UserError for a training of a search that lacks what its state brings."""
    for number, trial in enumerate(trials):
        needed = ("error",) if trial["state"] == "failed" else ("epochs", "value", "front")
        missing = [key for key in needed if trial.get(key) is None]
        missing += [f"config.{key}" for key in trials[0]["config"] if key not in trial["config"]]
        if missing:
            raise _wrong(place, f"results.trials.{number}.{missing[0]}", "Field required")
    if not any(trial.get("value_interval") for trial in trials):
        raise _wrong(place, "results.trials", "none has an interval")


def _check_measurement(record: Values, place: str) -> None:
    """UserError for a measurement whose keys do not go together."""
    if "environment" not in record:
        raise _wrong(place, "environment", "Field required")
    results = record["results"]
    if results.get("stopped_by") is not None:
        missing = [key for key in ("elapsed_s", "launches", "noise") if key not in results]
        noise = results.get("noise") or {}
        if noise.get("disturbed_slots"):
            wanted = ("waited", "foreign_cpus", "stolen_cpus", "slots", "repeated_slots")
            missing += [f"noise.{key}" for key in wanted if key not in noise]
        if missing:
            raise _wrong(place, f"results.{missing[0]}", "Field required")
    for number, row in enumerate(results["rows"]):
        if row.get("calm") is False and "disturbed_rounds" not in row:
            raise _wrong(place, f"results.rows.{number}.disturbed_rounds", "Field required")


ROUND_KEYS = ("round_p50_ms", "round_launch", "round_disturbed", "round_number")


def _check_rounds(rows: list[Values], place: str) -> None:
    """UserError unless the rows of one batch size name the same rounds, at least one of which all of them share."""
    sizes: dict[int, dict[int, int | None]] = {}  # by batch size the launch of each round
    shared: dict[int, set[int]] = {}
    for number, row in enumerate(rows):
        here = f"results.rows.{number}"
        count = len(row["round_p50_ms"])
        if not count or any(len(row[key]) != count for key in ROUND_KEYS if key in row):
            raise _wrong(place, here, "its rounds are not as many throughout")
        if ("round_launch" in row) != ("round_disturbed" in row):
            raise _wrong(place, here, "only one of round_launch and round_disturbed is there")
        if "round_number" in row and "round_launch" not in row:
            raise _wrong(place, here, "round_number is there, and round_launch is not")
        numbers = row.get("round_number", list(range(count)))
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise _wrong(place, f"{here}.round_number", "not in rising order")
        launches = sizes.setdefault(row["batch_size"], {})
        for round_number, launch in zip(numbers, row.get("round_launch", [None] * count), strict=True):
            if launches.setdefault(round_number, launch) != launch:
                raise _wrong(place, f"{here}.round_launch", "other launches than its neighbours have")
        shared[row["batch_size"]] = shared.get(row["batch_size"], set(numbers)) & set(numbers)
        if not shared[row["batch_size"]]:
            raise _wrong(place, f"{here}.round_p50_ms", "no round in which its neighbours have a sample too")
    for number, row in enumerate(rows):
        if "round_number" not in row and len(row["round_p50_ms"]) != len(sizes[row["batch_size"]]):
            raise _wrong(place, f"results.rows.{number}.round_p50_ms", "not as many rounds as its neighbours have")


def _check(
    schema: Any, value: Any, place: str, prefix: str = "", names: Mapping[str, str] = MappingProxyType({})
) -> None:
    """names: what keys are called in the record."""
    try:
        _adapter(schema).validate_python(value)
    except ValidationError as error:
        key, what = first_problem(error)
        key = ".".join(names.get(part, part) for part in key.split("."))
        raise _wrong(place, f"{prefix}{key}".rstrip("."), what) from None


def _wrong(place: str, key: str, what: str) -> UserError:
    return UserError(f"{place}: damaged at {key or 'its top'}: {what}", "delete its folder and run again")
