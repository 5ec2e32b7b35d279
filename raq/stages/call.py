"""What a stage's actor is given (`Call`), the names of the files that stages leave, and who may do a stage.

torch is imported inside the functions: the driver reads this module's types without paying for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raq.errors import StageError
from raq.store.settings import MachineOfStage, Settings, TrialSettings
from raq.store.views import execution_of

S = TypeVar("S", bound=Settings)
Progress = Callable[[dict[str, Any]], None]
Results = dict[str, Any]
WEIGHTS, CALIBRATED, PROGRAM, PREDICTIONS, SCORES, SAMPLES, LOGITS, EXAMPLES, THUMBNAILS = (
    "weights.pt",
    "calibrated.pt",  # what PTQ ended with, for QAT to start from
    "program.pt2",
    "predictions.npy",
    "scores.npy",  # of another metric than top-1: of each sample, or of resampled sets
    "samples.json",
    "logits.npy",  # of the last step of the parity chain that a stage did
    "examples.npz",  # test samples with what an artifact gives for them
    "thumbnails.npz",  # test images of which the FP32 network is least sure
)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A stage as its actor gets it: plain values and absolute paths.

    inputs: role -> folder of the finished stage. folder: where this one works.
    data_root, weights_file, working_directory: paths; fingerprints cover what lies there, not the paths.
    data_workers: processes that read samples ahead.
    cpus, gpus: of the stage, or of each of its workers or trials. labels: that the nodes of those must have.
    elastic: the least and the most workers of an elastic training; `workers` is how many fit at the start.
    address: of the results in object storage; if it is set, the folders above exist on the driver only.
    wait_s: how long to wait for nodes in place of those that are lost.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    inputs: Mapping[str, str]
    folder: str
    data_root: str | None = None
    data_workers: int = 0
    weights_file: str | None = None
    working_directory: str | None = None
    cpus: int
    gpus: int = 0
    workers: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    elastic: tuple[int, int] | None = None
    address: str | None = None
    wait_s: float = 0.0

    @property
    def device(self) -> str:
        """The device that training uses."""
        return "cuda" if self.gpus else "cpu"

    def read(self, kind: type[S]) -> S:
        """The settings, as those of a kind of stage."""
        return kind.model_validate(self.settings, by_name=True)

    def input(self, role: str) -> Path:
        """The folder of the finished stage that has this role."""
        return Path(self.inputs[role])


def refuse_other_machine(planned: MachineOfStage) -> None:
    """StageError if this is not the kind of machine that the plan is for."""
    from raq.environment import machine

    here = machine()
    if (here.cpu, here.features) != (planned.cpu, planned.features):
        raise StageError(
            f"this node has the CPU {here.cpu!r}, and the artifact is for {planned.cpu!r}",
            "give labels that only nodes of that kind have: resources.quantize.labels, resources.bench.labels",
        )


def trials_folder(call: Call) -> Path:
    """The folder of the trials that share this call's weights and start (of one execution), data and code."""
    trials = call.read(TrialSettings).trials
    shared = [execution_of(call.input(role))[:8] for role in ("weights", "ptq") if role in call.inputs]
    return Path(call.folder).parents[1] / "trials" / "-".join([trials[:16], *shared])
