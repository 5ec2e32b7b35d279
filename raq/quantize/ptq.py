"""Quantization after training: export, insert observers, calibrate."""

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import move_exported_model_to_eval
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from raq.errors import UserError
from raq.experiment import Calibration
from raq.model.augmentation import normalise
from raq.model.data import Dataset, calibration_indices
from raq.model.training import normalisation_tensors, take_batch
from raq.quantize.capture import export_program
from raq.quantize.quantizers import QUANTIZERS


def prepare(network: nn.Module, example: Tensor, backend: str, observer: str, *, reduce_range: bool) -> fx.GraphModule:
    """The network's graph with observers where `backend` quantizes."""
    graph = export_program(network.eval(), example).module()
    prepared: fx.GraphModule = prepare_pt2e(
        graph, QUANTIZERS[backend](qat=False, observer=observer, reduce_range=reduce_range)
    )
    return prepared


def calibrate(
    prepared: fx.GraphModule,
    dataset: Dataset,
    settings: Calibration,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Run a seeded sample of the training images through the observers, in place.

    Raises UserError if more images are asked for than there are training images.
    """
    available = len(dataset.train_labels)
    if settings.size > available:
        raise UserError(
            f"ptq.calibration.size is {settings.size}, and there are {available} training images",
            f"lower it to at most {available}",
        )
    move_exported_model_to_eval(prepared)
    chosen = calibration_indices(available, settings.size, seed)
    device = torch.device("cpu")
    mean, std = normalisation_tensors(dataset, device)
    with torch.no_grad():
        for start in range(0, len(chosen), settings.batch_size):
            part = chosen[start : start + settings.batch_size]
            images, _ = take_batch(dataset.train_images, dataset.train_labels, part, device)
            prepared(normalise(images, mean, std))
            progress(start + len(part))
