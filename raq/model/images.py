"""Data sets of images: uint8 arrays, memory-mapped, and their normalisation. torch is imported inside functions."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raq.experiment.inputs import Inputs, image_input
from raq.experiment.schema import HUB, Data
from raq.model.batch import Batch, in_batches
from raq.model.cache import Array
from raq.model.image_files import EncodedImages

if TYPE_CHECKING:
    import torch

HASHED_AT_ONCE = 1000
NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagefolder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's, as torchvision's weights expect
}


@dataclass(frozen=True)
class Images:
    """Some of the images of a memory-mapped array, or of files, uint8 [N, C, H, W]; only those asked for are read."""

    stored: Array | EncodedImages
    indices: Array

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, which: Array) -> Array:
        return self.stored[self.indices[which]]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, C, H, W]."""
        return (len(self.indices), *self.stored.shape[1:])

    def digests(self) -> Iterator[bytes]:
        """What tells each image from others: its pixels, or its file's content."""
        if isinstance(self.stored, EncodedImages):
            yield from self.stored.digests(self.indices)
            return
        for part in in_batches(np.arange(len(self)), HASHED_AT_ONCE):
            for image in self[part]:
                yield hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).digest()


@dataclass(frozen=True)
class ImageDataset:
    """A data set of images after limits and hold-out.

    images: uint8 [N, C, H, W]; labels: int64 [N], from 0 to classes - 1. The hold-out (`validation_*`) is a part of
    the training split that is neither trained on nor calibrated with. `mean` and `std` are of pixels / 255.
    """

    train_images: Images
    train_labels: Array
    validation_images: Images
    validation_labels: Array
    test_images: Images
    test_labels: Array
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str
    source: str
    class_names: tuple[str, ...] | None = None

    @property
    def inputs(self) -> Inputs:
        """What the network is called with."""
        return (image_input(self.train_images.shape[1:]),)

    def split(self, name: str) -> tuple[Images, Array]:
        """Images and labels of train, validation or test; calibration is train."""
        found: dict[str, tuple[Images, Array]] = {
            "train": (self.train_images, self.train_labels),
            "calibration": (self.train_images, self.train_labels),
            "validation": (self.validation_images, self.validation_labels),
            "test": (self.test_images, self.test_labels),
        }
        return found[name]

    def size(self, split: str) -> int:
        """How many images a split has."""
        return len(self.split(split)[1])

    def batches(self, split: str, parts: list[Array], device: "torch.device") -> Iterator[Batch]:
        """The images at these places of a split, normalised, with their labels; a batch for each list of places."""
        from raq.model.augmentation import normalise
        from raq.model.image_batches import normalisation_tensors, take_batch

        images, labels = self.split(split)
        mean, std = normalisation_tensors(self.mean, self.std, device)
        for part in parts:
            taken, wanted = take_batch(images, labels, part, device)
            yield Batch((normalise(taken, mean, std),), wanted)

    def labels(self, split: str) -> Array:
        """The classes of all images of a split, int64 [N]."""
        return self.split(split)[1]

    def describe(self) -> dict[str, Any]:
        """Counts, shapes and digest, for plans and records."""
        return {
            "digest": self.digest,
            "source": self.source,
            "classes": self.classes,
            "class_names": None if self.class_names is None else list(self.class_names),
            "train_images": len(self.train_images),
            "validation_images": len(self.validation_images),
            "test_images": len(self.test_images),
            "calibration_images": len(self.train_images),
            "image_shape": list(self.train_images.shape[1:]),
            "mean": list(self.mean),
            "std": list(self.std),
            "inputs": [one.plain() for one in self.inputs],
        }


def normalisation(data: Data, images: Array | EncodedImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The experiment's mean and std, else the data set's published ones, else those of the training images."""
    if data.mean is not None and data.std is not None:
        return data.mean, data.std
    known = "imagefolder" if data.name.startswith(HUB) else data.name
    if known in NORMALISATION:
        return NORMALISATION[known]
    count = 0.0
    total = np.zeros(images.shape[1])
    squares = np.zeros(images.shape[1])
    for start in range(0, len(images), 1024):
        chunk = images[np.arange(start, min(start + 1024, len(images)))].astype(np.float64) / 255  # [n, C, H, W]
        count += chunk.size / chunk.shape[1]
        total += chunk.sum(axis=(0, 2, 3))
        squares += (chunk**2).sum(axis=(0, 2, 3))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(np.maximum(std, 1e-2), 4).tolist())
