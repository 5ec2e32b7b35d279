"""What records look like: keys, types and bounds, as pydantic checks them and mypy knows them.

Records are files that anybody may have changed, and older versions of raq have left fewer keys: what is optional here
is what those lack. Unknown keys are left alone. Numbers are finite and of sizes that can be. Neither torch nor ray.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, with_config
from typing_extensions import TypedDict

MAX_TEXT = 20_000
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
    settings: NotRequired[dict[Name, Text]]


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
    id: NotRequired[Name | None]
    why: NotRequired[Text | None]
    depends: NotRequired[dict[str, str]]


@strict
class SettingsOfSelect(TypedDict):
    """What decides between configurations."""

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
class SettingsOfBenchStage(TypedDict):
    """Of a bench stage's settings, what a report reads."""

    device: Name


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
    """Of `half`, `ptq` and `qat`, what a report reads."""

    backend: NotRequired[Name]
    others: NotRequired[list[Name]]
    mode: NotRequired[list[Name]]
    calibration: NotRequired[Values]


@strict
class RunSettings(TypedDict):
    """Of an experiment, what a report reads."""

    train: Values
    ptq: SettingsOfCandidate | None
    qat: SettingsOfCandidate | None
    half: NotRequired[SettingsOfCandidate | None]
    bench: SettingsOfBench
    require: SettingsOfRequire
    sweep: NotRequired[SettingsOfSweep | None]
    select: NotRequired[SettingsOfVerdict]


@strict
class DataOfRun(TypedDict):
    """`Dataset.describe()`, what a report reads."""

    digest: Text
    class_names: NotRequired[list[Text] | None]


@strict
class RunRecord(TypedDict):
    """run.json."""

    id: Name
    experiment: Name
    notes: NotRequired[list[Text]]
    settings: RunSettings
    data: DataOfRun
    stages: dict[Name, RunStage]
    environment: Environment
    complete: bool
    error: Text | None


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
    cpus: NotRequired[Count]
    workers: NotRequired[Count]
    environment: NotRequired[Environment]
