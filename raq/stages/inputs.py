"""What every kind of stage reads: its data, its network, its part of the parity chain.

torch is imported inside the functions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raq.stages.call import WEIGHTS, Call
from raq.store.settings import DataSettings, MetricSettings, NetworkSettings, ParitySettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from raq.model.dataset import Dataset
    from raq.model.inputs import Example
    from raq.model.loop import Task
    from raq.model.metrics import Scorer
    from raq.model.parity import Chain


def parity_chain(call: Call, dataset: "Dataset") -> "Chain":
    """The parity chain's part of this stage."""
    from raq.model.parity import Chain

    asked = call.read(ParitySettings)
    return Chain(dataset, asked.parity_images, asked.seed, scorer(call))


def scorer(call: Call) -> "Scorer":
    """The metric of the stage, ready to be computed."""
    from raq.model.metrics import scorer_of

    asked = call.read(MetricSettings)
    return scorer_of(asked.metric, asked.data.classes, call.working_directory)


def training_task(call: Call, label_smoothing: float, *, teacher_alone: bool = False) -> "Task":
    """What this stage trains with, and judges by; teacher_alone: targets do not count."""
    from raq.model.loop import Task
    from raq.model.losses import loss_by_sample, no_loss

    asked = call.read(NetworkSettings)
    if teacher_alone:
        return Task(no_loss, scorer(call))
    return Task(loss_by_sample(asked.loss, label_smoothing, call.working_directory), scorer(call))


def read_dataset(call: Call, **other: Any) -> "Dataset":
    """The data of the stage, found again by their digest; `other`: keys of `data` set otherwise."""
    from raq.model.dataset import load_dataset

    data = call.read(DataSettings).data
    asked = data.at(call.data_root, **{"workers": call.data_workers, **other})
    return load_dataset(asked, call.working_directory, data.digest)


def build_network(call: Call, weights: "Mapping[str, Tensor] | None" = None, source: str = "") -> "nn.Module":
    """The network, untrained or with the `weights` that came from `source`; UserError if it is not what is needed."""
    from raq.model import zoo

    asked = call.read(NetworkSettings)
    name, classes = asked.model, asked.data.classes
    model = zoo.build_network(name, classes, asked.data.inputs, asked.output, call.working_directory)
    zoo.check_output(model, example_input(call), classes if asked.metric.is_top1 else None, name)
    if weights is not None:
        zoo.load_state(model, weights, name, source)
    return model


def read_trained_network(call: Call) -> "nn.Module":
    """The network with the weights of the stage before, in evaluation mode."""
    from raq.model.zoo import load_weights

    path = call.input("weights") / WEIGHTS
    return build_network(call, load_weights(path), str(path)).eval()


def example_input(call: Call) -> "Example":
    """Two samples of the right shapes, for export."""
    from raq.model.inputs import example_of

    return example_of(call.read(DataSettings).data.inputs)
