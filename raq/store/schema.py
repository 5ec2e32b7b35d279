"""What records must look like to be read: each kind's keys, types and bounds. Imports neither torch nor ray.

Records are files that anybody may have changed, and older versions of raq have left fewer keys: what is optional here
is what those lack. Unknown keys are left alone. Numbers are finite and of sizes that can be; an error names the key.
"""

import math
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from raq.errors import UserError

MAX_TEXT, MAX_DEPTH = 20_000, 40
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Name = Annotated[str, StringConstraints(max_length=200)]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,64}$")]
Count = Annotated[int, Field(ge=0, le=2**62, strict=True)]
Number = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(ge=1e-9, le=1e15, allow_inf_nan=False)]
Pair = Annotated[list[Number], Field(min_length=2, max_length=2)]


def _file_name(name: str) -> str:
    """A name that stays in the stage's own folder."""
    if name.startswith("/") or "\0" in name or ".." in name.split("/"):
        raise ValueError("a file's name that leads out of its folder")
    return name


FileName = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_file_name)]
Values = dict[str, Any]
STRICT = ConfigDict(strict=True, extra="allow")
strict = with_config(STRICT)


@strict
class Machine(TypedDict):
    """`environment.machine()`."""

    cpu: Text
    architecture: NotRequired[Text]
    features: list[Name]
    cpus: Count | None
    gpus: list[Name]


@strict
class Environment(TypedDict):
    """`environment.environment()`."""

    machine: Machine
    versions: dict[Name, Text | None]


@strict
class RunStage(TypedDict):
    """A stage as a run names it."""

    kind: Kind
    fingerprint: Fingerprint
    why: NotRequired[Text | None]
    depends: NotRequired[dict[str, str]]


@strict
class SettingsOfSelect(TypedDict):
    """What decides between mixtures."""

    max_drop: Number
    then: Literal["latency", "size"]


@strict
class SettingsOfSweep(TypedDict):
    """Of `sweep`, what a report reads."""

    layers: NotRequired[Values | None]
    select: NotRequired[SettingsOfSelect]


@strict
class SettingsOfBench(TypedDict):
    """Of `bench`, what a report reads."""

    devices: Text | list[Name]


@strict
class SettingsOfRequire(TypedDict):
    """Of `require`, what a report reads."""

    max_drop: Number


@strict
class SettingsOfMargin(TypedDict):
    """What counts as equivalent."""

    accuracy: Number
    speed: Number


@strict
class SettingsOfVerdict(TypedDict):
    """Of `select`, what a report reads."""

    margin: SettingsOfMargin
    batch_size: Annotated[int, Field(ge=1, le=2**32)] | None


@strict
class SettingsOfCandidate(TypedDict):
    """Of `ptq` and `qat`, what a report reads."""

    backend: NotRequired[Name]


@strict
class RunSettings(TypedDict):
    """Of an experiment, what a report reads."""

    train: Values
    ptq: SettingsOfCandidate | None
    qat: SettingsOfCandidate | None
    bench: SettingsOfBench
    require: SettingsOfRequire
    sweep: NotRequired[SettingsOfSweep | None]
    select: NotRequired[SettingsOfVerdict]


@strict
class DataOfRun(TypedDict):
    """`Dataset.describe()`, what a report reads."""

    digest: Text


@strict
class RunRecord(TypedDict):
    """run.json."""

    id: Name
    experiment: Name
    settings: RunSettings
    data: DataOfRun
    stages: dict[Name, RunStage]
    environment: Environment
    complete: bool
    error: Text | None


@strict
class ParityRow(TypedDict):
    """A step of the parity chain."""

    step: Name
    images: Count
    top1: Share
    against: Name | None
    sqnr_db: Number | None
    equal: bool | None
    changed: Count | None


@strict
class AuditedLayer(TypedDict):
    """A layer, and the kernel that the artifact calls for it."""

    name: Text
    macs: Count
    int8: bool
    reason: NotRequired[Text]


@strict
class OtherOperation(TypedDict):
    """What multiplies and is no layer."""

    name: Text
    operator: Text
    macs: Count | None


@strict
class Audit(TypedDict):
    """`audit.Audit` as a record."""

    layers: list[AuditedLayer]
    int8_mac_share: Share | None
    problem: Text
    others: NotRequired[list[OtherOperation]]
    total_macs: NotRequired[Count | None]


@strict
class ExecutedLayer(TypedDict):
    """A layer, and the kernel that ran for it."""

    name: Text
    macs: Count
    kernel: Text | None
    int8: bool


@strict
class FloatLayer(TypedDict):
    """A layer that a program leaves in float."""

    name: Text
    reason: Text


@strict
class Evaluation(TypedDict):
    """What an evaluate stage found."""

    classes: NotRequired[Annotated[int, Field(ge=1, le=2**31)]]
    train_correct: NotRequired[Count]
    train_images: NotRequired[Annotated[int, Field(ge=1, le=2**40)]]
    float_layers: NotRequired[list[FloatLayer]]
    executed_layers: NotRequired[list[ExecutedLayer]]
    float_by_choice_share: NotRequired[Share]
    top1: Share
    correct: Count
    test_images: Annotated[int, Field(ge=1, le=2**40)]
    parity: NotRequired[list[ParityRow]]
    resident_bytes: NotRequired[Count | None]
    graph_int8_mac_share: NotRequired[Share | None]
    executed_int8_mac_share: NotRequired[Share | None]
    reorders_per_call: NotRequired[dict[Name, Count]]


@strict
class Lowering(TypedDict):
    """What a lower stage found."""

    target: Name
    size_bytes: Annotated[int, Field(ge=1, le=2**62)]
    weight_bytes: Annotated[int, Field(ge=1, le=2**62)]
    int8_mac_share: Share | None
    runtime: NotRequired[Name]
    sha256: NotRequired[Name]
    note: NotRequired[Text]
    ledger: NotRequired[Values]
    audit: NotRequired[Audit]
    float_by_choice: NotRequired[list[Text]]
    float_copies: NotRequired[list[Text]]
    float_weight_share: NotRequired[Share | None]
    macs: NotRequired[Count | None]
    parity: NotRequired[list[ParityRow]]


@strict
class Quantizing(TypedDict):
    """What a ptq or qat stage found."""

    weight_bytes: NotRequired[Count]
    calibration: NotRequired[Values]
    config: NotRequired[Values]
    float_layers: NotRequired[list[Text]]
    reduce_range: NotRequired[bool]
    parity: NotRequired[list[ParityRow]]


@strict
class Agreement(TypedDict):
    """How far the launches of a measurement agree."""

    between: Number | None
    within: Number | None
    p: Number | None
    correlation: Number
    drift_p: Number


@strict
class BenchRow(TypedDict):
    """One contender at one batch size."""

    candidate: Name
    runtime: Name
    device: Name
    batch_size: Annotated[int, Field(ge=1, le=2**32)]
    threads: NotRequired[Count]
    rounds: Annotated[int, Field(ge=1, le=2**40)]
    disturbed_rounds: NotRequired[Count]
    round_far: NotRequired[list[bool]]
    calm: NotRequired[bool | None]
    mean_ms: Positive
    std_ms: Number | None
    p50_ms: Positive
    p90_ms: Number | None
    p99_ms: NotRequired[Number | None]
    speedup: Positive
    speedup_interval: Pair | None
    baseline: Name
    round_p50_ms: list[Positive]
    round_launch: NotRequired[list[Count]]
    round_disturbed: NotRequired[list[bool]]
    round_number: NotRequired[list[Count]]
    launch_agreement: NotRequired[Agreement | None]


@strict
class Extent(TypedDict):
    """Mean and most of a disturbance."""

    mean: NotRequired[Number]
    max: Number


@strict
class Handover(TypedDict):
    """Microseconds that threads took to hand over."""

    near: Number
    median: Number
    most: Number
    remembered: NotRequired[Number | None]


@strict
class Noise(TypedDict, total=False):
    """How a measurement was disturbed."""

    waited: Extent | None
    foreign_cpus: Extent | None
    stolen_cpus: Extent | None
    handover_us: Handover | None
    far_apart_slots: Count
    slots: Count
    disturbed_slots: Count | None
    repeated_slots: Count


@strict
class Measurement(TypedDict):
    """What a bench stage found."""

    rows: Annotated[list[BenchRow], Field(min_length=1)]
    protocol: NotRequired[Name | None]
    stopped_by: NotRequired[Literal["precision", "budget", "rounds", "repetitions"] | None]
    elapsed_s: NotRequired[Number]
    launches: NotRequired[Count]
    noise: NotRequired[Noise]


@strict
class Choice(TypedDict):
    """What a sweep chose, and why."""

    why: Text


@strict
class PtqChoice(Choice):
    """Of a sweep of calibrations."""

    config: Values


@strict
class FailedTrial(TypedDict):
    """A trial that failed."""

    config: Values
    error: Text


@strict
class CurveRow(TypedDict):
    """One calibration, over its seeds."""

    size: Count
    observer: Name
    percentile: Number | None
    per_channel: NotRequired[bool]
    reduce_range: NotRequired[bool]
    seeds: list[Count]
    mean_top1: Share
    std_top1: Number | None
    drop_points: Number
    against_largest: Number | None
    against_largest_interval: Pair | None
    loses_at_most: NotRequired[Number | None]


@strict
class PtqSweepResults(TypedDict):
    """What a sweep of calibrations found."""

    trials: list[Values]
    failed: list[FailedTrial]
    validation_images: Count
    baseline_top1: Share
    curve: Annotated[list[CurveRow], Field(min_length=1)]
    choice: PtqChoice
    calibration_images: Count
    calibration_passes: Count


@strict
class QatTrial(TypedDict):
    """One training of a search."""

    number: Count
    config: Values
    state: Literal["finished", "stopped", "failed"]
    epochs: NotRequired[Count]
    top1: NotRequired[Share | None]
    top1_interval: NotRequired[Pair | None]
    front: NotRequired[bool]
    error: NotRequired[Text]


@strict
class QatChoice(Choice):
    """Of a search for a training."""

    number: Count


@strict
class QatSweepResults(TypedDict):
    """What a search for a training found."""

    trials: Annotated[list[QatTrial], Field(min_length=1)]
    validation_images: Count
    baseline_top1: Share
    importance: dict[Name, Number] | None
    epochs_trained: Number
    epochs_asked: Number
    search: Name
    choice: QatChoice


@strict
class Scored(TypedDict):
    """A mixture as it was scored."""

    drop_points: Number
    drop_interval: Pair
    sqnr_db: Number | None


@strict
class Effect(TypedDict):
    """What one layer makes of the drop and of the noise."""

    drop_points: Number
    sqnr_db: Number | None


@strict
class AllQuantized(Scored):
    """What int8 everywhere comes to."""

    top1: Share


@strict
class Mixture(Scored):
    """A mixture that was chosen."""

    layers: Text
    float_mac_share: Share


@strict
class Sensitivity(TypedDict):
    """What leaving one layer out, and quantizing it alone, came to."""

    layer: Text
    mac_share: Share
    without: Effect | None
    only: Effect | None


@strict
class LayerChoice(Choice):
    """Of a search for layers to leave in float."""

    mixtures: list[Mixture]


@strict
class LayerSweepResults(TypedDict):
    """What a search for layers to leave in float found."""

    trials: list[Values]
    validation_images: Count
    baseline_top1: Share
    all_quantized: AllQuantized
    sensitivity: list[Sensitivity]
    choice: LayerChoice


@strict
class Training(TypedDict):
    """What a train or weights stage found."""

    history: NotRequired[list[Values]]
    weight_bytes: NotRequired[Count]
    parity: NotRequired[list[ParityRow]]


RESULTS: dict[str, Any] = {
    "train": Training,
    "weights": Training,
    "evaluate": Evaluation,
    "lower": Lowering,
    "ptq": Quantizing,
    "qat": Quantizing,
    "bench": Measurement,
    "ptq_sweep": PtqSweepResults,
    "qat_sweep": QatSweepResults,
    "layer_sweep": LayerSweepResults,
}


@strict
class StageRecord(TypedDict):
    """record.json of a finished stage, but for its results."""

    fingerprint: Fingerprint
    results: Values
    files: dict[FileName, Count]
    kind: Kind
    id: NotRequired[Name]
    digests: NotRequired[dict[FileName, Fingerprint]]
    settings: NotRequired[Values]
    environment: NotRequired[Environment]


@strict
class SettingsOfBenchStage(TypedDict):
    """Of a bench stage's settings, what a report reads."""

    device: Name


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
        if kind in ("evaluate", "lower", "bench") and stage["kind"] != kind:
            raise _wrong(place, f"stages.{name}.kind", f"{stage['kind']}, and {kind} is meant")
    if any(name.startswith("evaluate/") for name in run["stages"]) and "evaluate/fp32" not in run["stages"]:
        raise _wrong(place, "stages", "the baseline, evaluate/fp32, is missing")


def _is_candidate(name: str, settings: Values) -> bool:
    if name == "fp32":
        return True
    kind = "ptq" if name.startswith("mixed-") else name
    return kind in ("ptq", "qat") and settings[kind] is not None


def _check_alien_keys(results: Values, place: str) -> None:
    """UserError for what the requirements of a run look at, in the results of a stage that has none of it."""
    for key in ("graph_int8_mac_share", "audit", "float_copies", "train_correct", "executed_int8_mac_share"):
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
        _check(RESULTS[kind], record["results"], place, "results.")
        for number, row in enumerate(record["results"].get("parity", [])):
            compared = row["against"] is not None and not row["equal"]
            if compared and (row["sqnr_db"] is None or row["changed"] is None):
                raise _wrong(place, f"results.parity.{number}", "it is compared, and its distance is missing")
    if kind == "bench":
        _check_rounds(record["results"]["rows"], place)
        _check_measurement(record, place)
    if kind == "qat_sweep":
        _check_trials(record["results"]["trials"], place)
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


def _check_trials(trials: list[Values], place: str) -> None:
    """UserError for a training of a search that lacks what its state brings."""
    for number, trial in enumerate(trials):
        needed = ("error",) if trial["state"] == "failed" else ("epochs", "top1", "front")
        missing = [key for key in needed if trial.get(key) is None]
        missing += [f"config.{key}" for key in trials[0]["config"] if key not in trial["config"]]
        if missing:
            raise _wrong(place, f"results.trials.{number}.{missing[0]}", "Field required")
    if not any(trial.get("top1_interval") for trial in trials):
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
    """UserError unless the rows of one batch size tell of the same rounds, at least one of which all of them share."""
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
            raise _wrong(place, f"{here}.round_p50_ms", "no round in which its neighbours had a turn too")
    for number, row in enumerate(rows):
        if "round_number" not in row and len(row["round_p50_ms"]) != len(sizes[row["batch_size"]]):
            raise _wrong(place, f"results.rows.{number}.round_p50_ms", "not as many rounds as its neighbours have")


def _check(schema: Any, value: Any, place: str, prefix: str = "") -> None:
    try:
        _adapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(str(part)[:60] for part in first["loc"])
        raise _wrong(place, f"{prefix}{key}".rstrip("."), first["msg"]) from None


def _wrong(place: str, key: str, what: str) -> UserError:
    return UserError(f"{place}: damaged at {key or 'its top'}: {what}", "delete its folder and run again")
