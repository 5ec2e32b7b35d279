"""Which training images calibrate, and what a network reads of them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from raq.errors import UserError
from raq.experiment.schema import Calibration
from raq.model.augmentation import normalise
from raq.model.batches import normalisation_tensors, take_batch
from raq.model.cache import Array
from raq.model.dataset import Dataset, calibration_indices


def calibration_sample(dataset: Dataset, size: int, seed: int) -> Array:
    """A seeded sample of the training images; UserError if more are asked for than there are."""
    available = len(dataset.train_labels)
    if size > available:
        raise UserError(
            f"ptq.calibration.size is {size}, and there are {available} training images",
            f"lower it to at most {available}",
        )
    return calibration_indices(available, size, seed)


def calibration_parts(dataset: Dataset, settings: Calibration, seed: int) -> list[Array]:
    """The sample by batch; UserError as `calibration_sample`."""
    chosen = calibration_sample(dataset, settings.size, seed)
    return [chosen[start : start + settings.batch_size] for start in range(0, len(chosen), settings.batch_size)]


def calibration_batch(dataset: Dataset, part: Array) -> Tensor:
    """These training images, normalised: float32 [n, 3, H, W]."""
    device = torch.device("cpu")
    images, _ = take_batch(dataset.train_images, dataset.train_labels, part, device)
    return normalise(images, *normalisation_tensors(dataset, device))


class CalibrationBatches:
    """The sample's batches, one after the other, from the beginning as often as they are asked for.

    images: how many there are in all. UserError as `calibration_sample`.
    """

    def __init__(self, dataset: Dataset, settings: Calibration, seed: int) -> None:
        self.dataset, self.parts = dataset, calibration_parts(dataset, settings, seed)
        self.images = sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Tensor]:
        return (calibration_batch(self.dataset, part) for part in self.parts)
