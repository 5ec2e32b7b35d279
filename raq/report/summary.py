"""A run as one plain value, from its records alone: candidates, intervals, verdict. What `raq show --json` prints."""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from raq.artifact.runtimes import FP32_RUNTIME, RUNTIMES
from raq.bench.ratio_statistics import launch_agreement, paired_ratio
from raq.errors import UserError
from raq.experiment.fields import HALF_NAMES, MODE_OF, OTHER_TOOLS
from raq.experiment.schema import BASELINE
from raq.plan.facts import lower_stage_name, why_not_lowered
from raq.report.answers import read_answers_of_run
from raq.report.changed_answers import ChangedAnswers, changed_answers
from raq.report.claims import Drops, Measured, Rules
from raq.report.ratios import best_fp32, row_ratios
from raq.report.types import (
    Accuracy,
    Artifact,
    CandidateSummary,
    ComparedLatency,
    MeasurementSummary,
    MetricSummary,
    RunSummary,
)
from raq.report.verdict import verdict
from raq.report.worth import cost_of, worth_in_words
from raq.statistics.paired import Paired
from raq.statistics.proportions import same_accuracy_p
from raq.store.evaluation_results import ParityRow
from raq.store.files import Record
from raq.store.local import Store, read_run
from raq.store.opening import store_of
from raq.store.results import Noise, Throughput
from raq.store.schema import program_of
from raq.sweep.answers import Answers

HALF_DTYPES = {name: dtype for dtype, name in HALF_NAMES.items()}


def summarise(run_folder: Path) -> RunSummary:
    """The summary of a run; what is not there (yet) is None.

    Raises UserError if a record is damaged.
    """
    run = read_run(run_folder)
    store = store_of(run_folder)
    stages = {name: store.read(stage["kind"], stage["fingerprint"]) for name, stage in run["stages"].items()}
    settings = run["settings"]
    names = [name.removeprefix("evaluate/") for name in run["stages"] if name.startswith("evaluate/")]
    answers = read_answers_of_run(run_folder)
    benches: list[Record] = [r for name, r in stages.items() if r is not None and name.startswith("bench/")]
    environment = benches[0]["environment"] if benches else run["environment"]  # of where it was measured
    kinds = {
        name: "ptq" if name in OTHER_TOOLS else run["stages"].get(program_of(name), {}).get("kind", BASELINE)
        for name in names
    }
    machine = environment["machine"]
    candidates = [_candidate(name, kinds[name], settings, stages, answers, store, machine) for name in names]
    set_against_best_fp32(candidates)
    rules = Rules.of(settings)
    complete = bool(run["complete"]) and all(stages.values())
    executions = {name: None if record is None else record.get("id") for name, record in stages.items()}
    measured = {
        r["settings"]["device"]: Measured(r["results"].get("elapsed_s"), r["results"].get("stopped_by"))
        for r in benches
    }
    return {
        "run": run["id"],
        "experiment": run["experiment"],
        "complete": complete,
        "error": run["error"],
        "executions": executions,
        "made_anew": [name for name, stage in run["stages"].items() if stage.get("id") not in (None, executions[name])],
        "environment": environment,
        "notes": run.get("notes", []),
        "data": run["data"],
        "candidates": candidates,
        "sweep": _sweep(stages.get("sweep/ptq")),
        "qat_sweep": _sweep(stages.get("sweep/qat")),
        "layer_sweep": _sweep(stages.get("sweep/layers")),
        "measurement": [_measurement(record) for record in benches],
        "verdict": verdict(candidates, rules, drops_by(answers), measured)
        | {"worth": worth_in_words(drops_by(answers), {name: cost_of(stages, name) for name in names}, rules.metric)}
        if complete
        else {
            "choice": None, "why": f"the run is not complete: {run['error'] or 'records are missing'}", "claims": [],
            "choices": [],
        },
    }  # fmt: skip


def _candidate(
    name: str,
    kind: str,
    settings: Record,
    stages: dict[str, Record | None],
    answers: Mapping[str, Answers | None],
    store: Store,
    machine: Record,
) -> CandidateSummary:
    """What the records of a run say of one candidate."""
    evaluation, program = stages.get(f"evaluate/{name}"), stages.get(program_of(name))
    made: Record = program["results"] if program is not None else {}
    written = settings["train" if kind == BASELINE else "ptq" if name in MODE_OF else kind]
    if name in OTHER_TOOLS:
        known = written.get("calibration", {})
        written = {"quantizer": name, "calibration": {key: known.get(key) for key in ("size", "batch_size")}}
    if name in HALF_DTYPES:
        written = {"dtype": HALF_DTYPES[name]}
    if "mode" in written:  # of several, its own
        shared = written if kind == "ptq" else {"backend": written.get("backend")}
        written = {**shared, "mode": MODE_OF.get(name, "static")}
    backend, lowered = written.get("backend"), bool({f"lower/{name}", f"lower/{name}/cuda"} & set(stages))
    gpus = len(machine.get("gpus") or ())
    return {
        "name": name,
        "kind": kind,
        "program": program_of(name),
        "config": _config(written, made),
        **_accuracy(name, answers),
        "artifacts": _artifacts(name, stages, evaluation, store),
        "float_layers": made.get("float_layers"),
        "backend": backend,
        "not_lowered": None
        if lowered
        else why_not_lowered(backend, machine.get("architecture", ""), gpus, settings["bench"]["devices"]),
        "graph_int8_mac_share": evaluation["results"].get("graph_int8_mac_share") if evaluation else None,
        "reduce_range": {**(program.get("settings") or {}), **made}.get("reduce_range") if program else None,
        "parity": _parity(name, stages),
        "latency": [
            cast(ComparedLatency, {key: value for key, value in row.items() if key != "candidate"})
            for row in _measured("rows", name, stages)
        ],
        "throughput": [cast(Throughput, row) for row in _measured("throughput", name, stages)],
        "losses": made.get("losses", []),
        "methods": made.get("methods"),
        "start": made.get("start"),
        "effort": made.get("effort"),
        "changed": _changed(name, answers),
    }


def _parity(name: str, stages: dict[str, Record | None]) -> list[ParityRow]:
    """The chain of a candidate, in order."""
    evaluated = stages.get(f"evaluate/{name}")
    device = None if evaluated is None else evaluated["settings"].get("device")
    own = (program_of(name), lower_stage_name(name, device or "cpu"), f"evaluate/{name}")
    found = [record for stage, record in stages.items() if record is not None and stage in own]
    return [row for record in found for row in record["results"].get("parity", [])]


def _changed(name: str, answers: Mapping[str, Answers | None]) -> ChangedAnswers | None:
    """Which answers are others than FP32's."""
    mine, base = answers.get(name), answers.get(BASELINE)
    return None if name == BASELINE or mine is None or base is None else changed_answers(base, mine)


def _measured(key: str, name: str, stages: dict[str, Record | None]) -> list[Record]:
    """The rows of a candidate, of what all devices were measured for."""
    records = [record for stage, record in stages.items() if record is not None and stage.startswith("bench/")]
    return [row for record in records for row in record["results"].get(key, []) if row["candidate"] == name]


def _config(written: Record, made: Record) -> Record:
    """How a candidate was made: as written, or as a sweep has chosen it."""
    if "config" in made:
        chosen: Record = made["config"]
        return chosen
    return {**written, "calibration": made["calibration"]} if "calibration" in made else written


def _accuracy(name: str, answers: Mapping[str, Answers | None]) -> Accuracy:
    """The metric with its interval, and the drop against FP32 on the same samples; None of what is not known."""
    found: Accuracy = {
        "top1": None, "top1_interval": None, "drop_points": None, "drop_interval": None, "same_accuracy_p": None,
        "test_images": None, "metric": None,
    }  # fmt: skip
    mine, baseline = answers.get(name), answers.get(BASELINE)
    if mine is None:
        return found
    value, interval, metric = mine.value, list(mine.interval()), mine.metric
    shown: MetricSummary = {
        "name": metric.function, "unit": metric.unit, "greater_is_better": metric.greater_is_better, "value": value,
        "interval": interval, "drop": None, "drop_interval": None,
    }  # fmt: skip
    lost = None if baseline is None else mine.worse_than(baseline)
    if lost is not None:
        shown["drop"], shown["drop_interval"] = (0.0, [0.0, 0.0]) if name == BASELINE else _drop(lost)
    found["metric"], found["test_images"] = shown, mine.samples
    if metric.is_top1:
        found["top1"], found["top1_interval"] = value, interval
        found["drop_points"], found["drop_interval"] = shown["drop"], shown["drop_interval"]
        if baseline is not None and lost is not None:
            found["same_accuracy_p"] = same_accuracy_p(baseline.right, mine.right)
    return found


def _drop(lost: Paired) -> tuple[float, list[float]]:
    return lost.value, list(lost.interval())


def _artifacts(name: str, stages: dict[str, Record | None], evaluation: Record | None, store: Store) -> list[Artifact]:
    """The candidate's artifacts, one a device."""
    keys = (
        "runtime",
        "target",
        "size_bytes",
        "weight_bytes",
        "int8_mac_share",
        "int8_weight_mac_share",
        "sha256",
        "note",
        "ledger",
    )
    resident = evaluation["results"].get("resident_bytes") if evaluation is not None else None
    return [
        cast(
            Artifact,
            {key: record["results"].get(key) for key in keys}
            | {"resident_bytes": resident}
            | _executed(record, evaluation)
            | {"path": store.place(record, _file_of(record))},
        )
        for stage, record in stages.items()
        if record is not None and (stage == f"lower/{name}" or stage.startswith(f"lower/{name}/"))
    ]


def drops_by(answers: Mapping[str, Answers | None]) -> Drops:
    """How much worse one candidate is than another, from what each answered."""

    def drops(first: str, second: str) -> Paired | None:
        one, other = answers.get(first), answers.get(second)
        return None if one is None or other is None else other.worse_than(one)

    return drops


def set_against_best_fp32(candidates: list[CandidateSummary]) -> None:
    """Add to each latency its speedup over the fastest FP32 there, eager mode included, and how its launches agree."""
    for candidate in candidates:
        for row in candidate["latency"]:
            plain = best_fp32(candidates, (row["device"], row["batch_size"]))
            value = interval = agreement = None
            if plain is not None:
                launches = row_ratios(plain, row)
                value, interval = paired_ratio(launches)
                itself = (candidate["name"], row["runtime"]) == (plain["candidate"], plain["runtime"])
                agreement = None if itself else launch_agreement(launches)
            row["speedup_over_best_fp32"] = value
            row["speedup_over_best_fp32_interval"] = list(interval) if interval else None
            row["best_fp32"] = None if plain is None else f"{plain['candidate']}/{plain['runtime']}"
            row["launch_agreement_over_best_fp32"] = agreement


def _executed(lowered: Record, evaluation: Record | None) -> Record:
    """Whether an artifact was evaluated, or another device's; what was seen running: the share of int8, and by batch
    size weights packed anew at a call."""
    same = evaluation is not None and (evaluation.get("settings") or {}).get("device") == lowered["results"]["target"]
    found = evaluation["results"] if same and evaluation is not None else {}
    return {
        "is_evaluated": same,
        "executed_int8_mac_share": found.get("executed_int8_mac_share"),
        "executed_half_mac_share": found.get("executed_half_mac_share"),
        "reorders_per_call": found.get("reorders_per_call"),
    }


def _file_of(lowered: Record) -> str:
    """The artifact's file in the folder of this lower stage."""
    name = lowered["results"].get("runtime", FP32_RUNTIME)
    if name not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise UserError(
            f"{lowered['kind']}-{lowered['fingerprint'][:16]}: damaged at results.runtime: {name!r} is none of {known}",
            "delete its folder and run again, or show it with the raq that made it",
        )
    return RUNTIMES[name].file_name


def _sweep(record: Record | None) -> Record | None:
    """What the trials of a sweep came to; None without one."""
    return None if record is None else dict(record["results"])


def _measurement(record: Record) -> MeasurementSummary:
    """How a device was measured, without the clocks of every round."""
    results, noise = record["results"], record["results"].get("noise") or {}
    return {
        "protocol": results.get("protocol"), "stopped_by": results.get("stopped_by"),
        "elapsed_s": results.get("elapsed_s"), "launches": results.get("launches"),
        "device": record["settings"]["device"],
        "profiles": results.get("profiles") or [], "not_profiled": results.get("not_profiled"),
        "no_throughput": results.get("no_throughput"),
        "noise": cast(Noise, {key: value for key, value in noise.items() if key != "clocks"}),
    }  # fmt: skip
