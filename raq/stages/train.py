"""The stages that leave FP32 weights: training, and the user's own.

Plain torch, never ray; torch is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from raq.errors import UserError
from raq.experiment.fields import INCLUDED
from raq.stages.call import WEIGHTS, Call, Progress, Results
from raq.stages.inputs import build_network, read_dataset, training_task
from raq.stages.transfer import local_context
from raq.store.files import file_digest
from raq.store.settings import TrainSettings, WeightsSettings

if TYPE_CHECKING:
    from torch import nn

    from raq.model.checkpoints import TrainingContext, TrainingResult

PLAIN_SIZE = "set train.progressive: [] to train at the full size only"


def load_weights_stage(call: Call, progress: Progress) -> Results:
    """Check the user's weights against the network, or take those that it comes with, and keep a copy."""
    import torch

    from raq.model.zoo import load_weights, refuse_not_finite

    if call.read(WeightsSettings).weights == INCLUDED:
        model = build_network(call)
        refuse_not_finite(model, f"model {call.read(WeightsSettings).model}")
        torch.save(model.state_dict(), Path(call.folder) / WEIGHTS)
        return _size_of_weights(model)
    assert call.weights_file is not None
    path = Path(call.weights_file)
    model = build_network(call, load_weights(path), str(path))
    if file_digest(path) != call.read(WeightsSettings).weights:
        raise UserError(f"model.weights: {path} has changed since the plan was made", "run again")
    torch.save(model.state_dict(), Path(call.folder) / WEIGHTS)
    return _size_of_weights(model)


def train_stage(call: Call, progress: Progress) -> Results:
    """FP32 training in this process."""
    result = train_in(call, local_context(call, progress))
    return finish(call, result)


def train_in(call: Call, context: "TrainingContext") -> "TrainingResult":
    """FP32 training in the context given: a worker's part of it."""
    from raq.model.loop import seed_everything
    from raq.model.training import train
    from raq.model.zoo import refuse_not_finite

    dataset, asked = read_dataset(call), call.read(TrainSettings)
    seed_everything(asked.seed)
    network = build_network(call)
    refuse_not_finite(network, f"model {asked.model}, untrained,")
    _check_sides(network, asked)
    task = training_task(call, asked.train.label_smoothing)
    return train(network, dataset, task, asked.train, asked.seed, context)


def _check_sides(network: "nn.Module", asked: TrainSettings) -> None:
    """UserError if the network does not take the smaller images of a progressive recipe."""
    import torch

    from raq.model.schedules import image_side
    from raq.model.zoo import check_output

    sizes = asked.train.progressive
    if not sizes or set(sizes) == {1.0}:
        return
    channels, height, width = asked.data.inputs[0].shape
    if height != width:
        raise UserError(f"images are {height}x{width}, and train.progressive wants square ones", PLAIN_SIZE)
    side = image_side((min(sizes),), 0, 1, width)
    try:
        check_output(network, torch.zeros(2, channels, side, side), asked.data.classes, asked.model)
    except UserError as error:
        raise UserError(error.message, PLAIN_SIZE) from error


def finish(call: Call, result: "TrainingResult") -> Results:
    """What a finished FP32 training leaves: the weights of its best epoch, and its history."""
    import torch

    model = build_network(call, result.state, "the checkpoint")
    torch.save(model.state_dict(), Path(call.folder) / WEIGHTS)
    return {"history": result.history, "best_epoch": result.best_epoch, **_size_of_weights(model)}


def _size_of_weights(model: "nn.Module") -> Results:
    tensors = model.state_dict().values()
    return {"weight_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}
