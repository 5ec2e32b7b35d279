"""A stage's call, and what every kind of stage needs of it: its data, its network, its part of the parity chain.

torch is imported inside the functions: the driver reads this module's types without paying for it.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.experiment.schema import Data
from raq.experiment.training import Qat
from raq.store.files import digest, file_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raq.model.dataset import Dataset
    from raq.model.parity import Chain

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


def parity_chain(call: Call, dataset: "Dataset") -> "Chain":
    """The parity chain's part of this stage."""
    from raq.model.parity import Chain

    return Chain(dataset, call.settings["parity_images"], call.settings["seed"])


def dataset_of(call: Call, **other: Any) -> "Dataset":
    """The images of the stage, found again by their digest; `other`: keys of `data` set otherwise."""
    from raq.model.dataset import load_dataset

    chosen = {key: value for key, value in call.settings["data"].items() if key in Data.model_fields}
    data = Data.model_validate({**chosen, "root": call.data_root, **other})
    return load_dataset(data, call.working_directory, call.settings["data"]["digest"])


def network_of(call: Call, weights: "Mapping[str, Tensor] | None" = None, source: str = "") -> "nn.Module":
    """The network, untrained or with the `weights` that came from `source`; UserError if it is not what is needed."""
    from raq.model.zoo import build_model, check_output, put_weights

    name = call.settings["model"]
    classes = call.settings["data"]["classes"]
    model = build_model(name, classes, call.working_directory)
    check_output(model, example_of(call), classes, name)
    if weights is not None:
        put_weights(model, weights, name, source)
    return model


def trained_network(call: Call) -> "nn.Module":
    """The network with the weights of the stage before, in evaluation mode."""
    from raq.model.zoo import load_weights

    path = Path(call.inputs["weights"]) / WEIGHTS
    return network_of(call, load_weights(path), str(path)).eval()


_prepared: dict[str, Any] = {}  # the last graph that `prepared_for_qat` made, by what it depends on


def prepared_for_qat(call: Call, settings: Qat) -> Any:
    """The trained network's graph with fake quantizers, as new; made once for the trials and steps of one process."""
    from raq.quantize.qat import prepare_qat

    weights, reduce_range = Path(call.inputs["weights"]), call.settings["reduce_range"]
    key = digest([file_digest(weights / WEIGHTS), settings.backend, reduce_range, call.settings["model"]])
    if key not in _prepared:
        made = prepare_qat(trained_network(call), example_of(call), settings.backend, reduce_range=reduce_range)
        _prepared.clear()
        _prepared[key] = made
    return copy.deepcopy(_prepared[key])


def example_of(call: Call) -> "Tensor":
    """Two images of the right shape, for export."""
    import torch

    return torch.zeros(2, *call.settings["data"]["image_shape"])
