"""Load a data set: uint8 arrays, with limits of size, a validation split and normalisation.

Where they come from is in sources.py; what happens to a batch (crop, flip, normalise) in augmentation.py. Must not
import torch or ray at its top: plans are made without them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from raq.errors import UserError
from raq.experiment.schema import Data
from raq.model.cache import Array
from raq.model.sources import cifar10, digits, from_function, imagefolder

NORMALISATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "imagefolder": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet's, as torchvision's weights expect
}
LIMIT_SEED = 20240  # any number, but fixed: what train_limit and test_limit choose does not depend on the seed


@dataclass(frozen=True)
class Images:
    """Some of the images of a memory-mapped array, uint8 [N, 3, H, W]; only those asked for are read."""

    stored: Array
    indices: Array

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, which: Array) -> Array:
        return self.stored[self.indices[which]]

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, 3, H, W]."""
        return (len(self.indices), *self.stored.shape[1:])


@dataclass(frozen=True)
class Dataset:
    """A data set after limits and hold-out.

    images: uint8 [N, 3, H, W]; labels: int64 [N], from 0 to classes - 1. The hold-out (`validation_*`) is a part of
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

    def describe(self) -> dict[str, Any]:
        """Counts, shapes and digest, for plans and records."""
        return {
            "digest": self.digest,
            "source": self.source,
            "classes": self.classes,
            "train_images": len(self.train_images),
            "validation_images": len(self.validation_images),
            "test_images": len(self.test_images),
            "image_shape": list(self.train_images.shape[1:]),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def load_dataset(data: Data, working_directory: str | None = None, expect_digest: str | None = None) -> Dataset:
    """The data set that the experiment asks for; images stay memory-mapped.

    `working_directory` is where module:function is imported from. Raises UserError if the data cannot be found or
    read, or if its digest is not `expect_digest` (another node's copy differs from the one that was planned with).
    """
    decode = {"digits": digits, "cifar10": cifar10, "imagefolder": imagefolder}.get(data.name)
    arrays, digest, source = decode(data) if decode else from_function(data, working_directory)
    if expect_digest is not None and digest != expect_digest:
        raise UserError(
            f"data {data.name!r} from {source} differs from the data of the plan (digest {digest[:12]}, "
            f"planned {expect_digest[:12]})",
            "put the same files on every node",
        )
    classes = int(arrays["train_labels"].max()) + 1
    train = _sample(len(arrays["train_labels"]), data.train_limit, "data.train_limit", source)
    test = _sample(len(arrays["test_labels"]), data.test_limit, "data.test_limit", source)
    held_out = round(len(train) * data.validation_fraction)
    if held_out >= len(train):
        raise UserError(
            f"data.validation_fraction holds out all {len(train)} training images", "lower data.validation_fraction"
        )
    validation = np.sort(np.random.default_rng(LIMIT_SEED + 1).permutation(train)[:held_out])
    train = np.setdiff1d(train, validation, assume_unique=True)
    mean, std = _normalisation(data, arrays["train_images"])
    return Dataset(
        train_images=Images(arrays["train_images"], train),
        train_labels=arrays["train_labels"][train],
        validation_images=Images(arrays["train_images"], validation),
        validation_labels=arrays["train_labels"][validation],
        test_images=Images(arrays["test_images"], test),
        test_labels=arrays["test_labels"][test],
        classes=classes,
        mean=mean,
        std=std,
        digest=digest,
        source=source,
    )


def calibration_indices(train_count: int, size: int, seed: int) -> Array:
    """Which training images calibrate: a sample without replacement; a smaller size is a prefix of a larger one."""
    return np.random.default_rng(seed).permutation(train_count)[:size]


def _sample(count: int, limit: int | None, key: str, source: str) -> Array:
    if limit is None or limit == count:
        return np.arange(count)
    if limit > count:
        raise UserError(f"{key} is {limit}, and {source} has {count} images", f"lower {key} to at most {count}")
    return np.sort(np.random.default_rng(LIMIT_SEED).permutation(count)[:limit])


def _normalisation(data: Data, images: Array) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The experiment's mean and std, else the data set's published ones, else those of the training images."""
    if data.mean is not None and data.std is not None:
        return data.mean, data.std
    if data.name in NORMALISATION:
        return NORMALISATION[data.name]
    count = 0.0
    total = np.zeros(3)
    squares = np.zeros(3)
    for start in range(0, len(images), 1024):
        chunk = images[start : start + 1024].astype(np.float64) / 255  # [n, 3, H, W]
        count += chunk.size / chunk.shape[1]
        total += chunk.sum(axis=(0, 2, 3))
        squares += (chunk**2).sum(axis=(0, 2, 3))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return tuple(np.round(mean, 4).tolist()), tuple(np.round(np.maximum(std, 1e-2), 4).tolist())
