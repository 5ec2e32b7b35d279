"""A stage's call, and what every kind of stage needs of it: its data, its network, its part of the parity chain.

torch is imported inside the functions: the driver reads this module's types without paying for it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.store.files import read_json

if TYPE_CHECKING:
    pass

from collections.abc import Callable
from dataclasses import dataclass, field

from raq.errors import StageError

Progress = Callable[[dict[str, Any]], None]
Results = dict[str, Any]
WEIGHTS, PROGRAM, PREDICTIONS, SAMPLES, LOGITS = (
    "weights.pt",
    "program.pt2",
    "predictions.npy",
    "samples.json",
    "logits.npy",  # of the last step of the parity chain that a stage did
)


@dataclass(frozen=True)
class Call:
    """A stage as its actor gets it: plain values and absolute paths.

    inputs: role -> folder of the finished stage; folder: where this one works; data_root, weights_file and
    working_directory: where things lie, which no fingerprint covers; cpus: how many CPUs are its own; labels: those
    that the nodes of its workers or trials must have; elastic: the least and the most workers of a training that goes
    on when nodes come and go, of which there is room for `workers` at first; address: where the results are, if not in
    the folders named, which are then the driver's; wait_s: how long to wait for nodes in place of those that are lost.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    inputs: Mapping[str, str]
    folder: str
    data_root: str | None
    weights_file: str | None
    working_directory: str | None
    cpus: int
    gpus: int
    workers: int
    labels: Mapping[str, str] = field(default_factory=dict)
    elastic: tuple[int, int] | None = None
    address: str | None = None
    wait_s: float = 0.0

    @property
    def device(self) -> str:
        """The device that training uses."""
        return "cuda" if self.gpus else "cpu"


def refuse_other_machine(planned: Mapping[str, Any]) -> None:
    """StageError if this is not the kind of machine that the plan is for."""
    from raq.environment import machine

    here = machine()
    if (here["cpu"], here["features"]) != (planned["cpu"], planned["features"]):
        raise StageError(
            f"this node has the CPU {here['cpu']!r}, and the artifact is for {planned['cpu']!r}",
            "give labels that only nodes of that kind have: resources.quantize.labels, resources.bench.labels",
        )


def trials_folder(call: Call) -> Path:
    """Where the trials are kept that depend on the same weights (as trained by one execution), data and code."""
    execution = read_json(Path(call.inputs["weights"]) / "record.json")["id"]
    return Path(call.folder).parents[1] / "trials" / f"{call.settings['trials'][:16]}-{execution[:8]}"
