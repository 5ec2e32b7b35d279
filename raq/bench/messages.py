"""What a contender's process is asked and answers, as JSON: never pickles, as an artifact may be a stranger's.

launcher.py asks, contender.py answers. Imports neither torch nor ray.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from pydantic import TypeAdapter

from raq.experiment.inputs import InputSpec


@dataclass(frozen=True)
class ContenderSettings:
    """What is measured. path: artifact, or weights for eager; inputs: what it is called with; output: which of the
    network's is judged; fp32: whether it is FP32; of GPUs, tf32: whether it may multiply in TF32; graph: whether it is
    called as a CUDA graph."""

    candidate: str
    runtime: str
    device: str
    path: str
    inputs: tuple[InputSpec, ...]
    threads: int
    model: str
    classes: int | None
    working_directory: str | None
    output: str | int | None = field(default=None, kw_only=True)
    fp32: bool = field(default=False, kw_only=True)
    tf32: bool = field(default=False, kw_only=True)
    graph: bool = field(default=False, kw_only=True)

    @property
    def way(self) -> str:
        """The runtime, and the way of calling it: inductor, eager+tf32, inductor+graph."""
        return self.runtime + "+tf32" * self.tf32 + "+graph" * self.graph

    @property
    def name(self) -> str:
        """candidate/way."""
        return f"{self.candidate}/{self.way}"


@dataclass(frozen=True)
class Load(ContenderSettings):
    """Load a contender, on these CPUs. load, prepare: functions of its runtime by name; None in eager mode."""

    cpus: list[int]
    load: str | None
    prepare: str | None


@dataclass(frozen=True)
class WarmUp:
    """Call until times are stable: at least `calls` times, for at most `cap_s` seconds after those."""

    batch_size: int
    calls: int
    cap_s: float


@dataclass(frozen=True)
class TimeRound:
    """Time at least so many calls, and so many milliseconds of them."""

    batch_size: int
    repetitions: int
    round_ms: float


@dataclass(frozen=True)
class Loaded:
    """A contender is loaded. cpus: those that its process may use, None where the system does not report it."""

    load_ms: float
    threads: int
    cpus: list[int] | None
    pid: int


@dataclass(frozen=True)
class Warmed:
    """It is warm. first_ms: of the first call; calls: how many; stable: whether times were; peak_bytes: of memory."""

    first_ms: float
    calls: int
    stable: bool
    peak_bytes: int


@dataclass(frozen=True)
class Timed:
    """Milliseconds of each call, and the process's clocks while it called.

    waited_s: how long the thread that waited longest could have run and did not, of wall_s; None where the system does
    not report it. cpu_s: of all threads, until they no longer spun. handover_us: None where it was not measured.
    """

    samples_ms: list[float]
    wall_s: float
    waited_s: float | None
    cpu_s: float
    handover_us: float | None


@dataclass(frozen=True)
class Failed:
    """What went wrong; trace: where, of an error that is not one of raq's own."""

    error: str
    hint: str
    trace: str | None = None


Command = Load | WarmUp | TimeRound
Reply = Loaded | Warmed | Timed | Failed
MESSAGES: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Load, WarmUp, TimeRound, Loaded, Warmed, Timed, Failed)
}


def encode(message: Command | Reply) -> bytes:
    """A message as bytes."""
    return json.dumps([type(message).__name__, asdict(message)]).encode()


def decode(content: bytes) -> Any:
    """The message that these bytes are; ValueError if they are none."""
    try:
        named = json.loads(content)
    except RecursionError:
        raise ValueError("its answer is nested too deep") from None
    if not isinstance(named, list) or len(named) != 2 or not isinstance(named[0], str) or named[0] not in MESSAGES:
        raise ValueError("its answer is none that is known")
    return _adapter(named[0]).validate_python(named[1])


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(MESSAGES[name])
