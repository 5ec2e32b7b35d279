"""Which samples calibrate, and what a network reads of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from raq.errors import UserError
from raq.experiment.inputs import Inputs
from raq.experiment.ptq import Calibration
from raq.model.batch import in_batches
from raq.model.cache import Array
from raq.model.dataset import Dataset, calibration_indices


def calibration_sample(dataset: Dataset, size: int, seed: int) -> Array:
    """A seeded sample of the calibration split; UserError if more are asked for than there are."""
    available = dataset.size("calibration")
    if size > available:
        raise UserError(
            f"ptq.calibration.size is {size}, and there are {available} samples to calibrate with",
            f"lower it to at most {available}",
        )
    return calibration_indices(available, size, seed)


def calibration_parts(dataset: Dataset, settings: Calibration, seed: int) -> list[Array]:
    """The sample by batch; UserError as `calibration_sample`."""
    return in_batches(calibration_sample(dataset, settings.size, seed), settings.batch_size)


def calibration_batch(dataset: Dataset, part: Array) -> tuple[Tensor, ...]:
    """The inputs of these samples, tensors [n, ...]; of images, normalised."""
    return next(iter(dataset.batches("calibration", [part], torch.device("cpu")))).inputs


class CalibrationBatches:
    """The sample's batches, one after the other, from the beginning as often as they are asked for.

    samples: how many there are in all; inputs: what the network is called with. UserError as `calibration_sample`.
    """

    def __init__(self, dataset: Dataset, settings: Calibration, seed: int) -> None:
        self.dataset, self.parts = dataset, calibration_parts(dataset, settings, seed)
        self.samples = sum(map(len, self.parts))
        self.inputs: Inputs = dataset.inputs

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (calibration_batch(self.dataset, part) for part in self.parts)
