"""Load a data set, of images or of samples of any kind, with limits of size and a validation split.

Where they come from is in sources.py and data.py. Must not import torch or ray at its top: plans are made without them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from raq.errors import UserError
from raq.experiment.inputs import Inputs
from raq.experiment.schema import Data
from raq.model.batch import Batch
from raq.model.cache import Array
from raq.model.data import Arrays
from raq.model.data import Data as UserData
from raq.model.images import ImageDataset, Images, normalisation
from raq.model.known_data import data_digest, describe_inputs
from raq.model.samples import Part, SampleDataset
from raq.model.sources import CLASS_NAMES, arrays_of_function, call_function, source_of
from raq.model.user_code import sources_of

if TYPE_CHECKING:
    import torch

LIMIT_SEED = 20240  # any number, but fixed: what train_limit and test_limit choose does not depend on the seed


class Dataset(Protocol):
    """What stages read. Splits: train, validation, calibration, test."""

    @property
    def classes(self) -> int | None:
        """How many there are, where targets are classes."""

    @property
    def inputs(self) -> Inputs:
        """What the network is called with."""

    @property
    def digest(self) -> str:
        """What tells it from others."""

    def size(self, split: str) -> int:
        """How many samples a split has."""

    def batches(self, split: str, parts: list[Array], device: "torch.device") -> Iterator[Batch]:
        """The samples at these places of a split, a batch for each list of them."""

    def labels(self, split: str) -> Array:
        """The classes of all samples of a split, int64 [N], where targets are classes."""

    def describe(self) -> dict[str, Any]:
        """Counts, shapes and digest, for plans and records."""


def load_dataset(data: Data, working_directory: str | None = None, expect_digest: str | None = None) -> Dataset:
    """The data set that the experiment asks for; images stay memory-mapped.

    `working_directory` is where module:function is imported from. Raises UserError if the data cannot be found or
    read, or if its digest is not `expect_digest` (another node's copy differs from the one that was planned with).
    """
    found: Dataset
    source = source_of(data.name)
    if source is not None:
        found = _images(data, *source(data))
    else:
        returned = call_function(data, working_directory)
        if isinstance(returned, UserData):
            found = _samples(data, returned, working_directory)
        else:
            found = _images(data, *arrays_of_function(data, returned))
    if expect_digest is not None and found.digest != expect_digest:
        raise UserError(
            f"data {data.name!r} differs from the data of the plan (digest {found.digest[:12]}, "
            f"planned {expect_digest[:12]})",
            "put the same files on every node",
        )
    return found


def _images(data: Data, arrays: dict[str, Any], digest: str, source: str) -> ImageDataset:
    """A data set of images out of the four arrays."""
    train, validation = _held_out(len(arrays["train_labels"]), data, source)
    test = _sample(len(arrays["test_labels"]), data.test_limit, "data.test_limit", source)
    channels = arrays["train_images"].shape[1]
    mean, std = normalisation(data, arrays["train_images"])
    if not len(mean) == len(std) == channels:
        raise UserError(
            f"data.mean has {len(mean)} numbers and data.std {len(std)}, and {source} has {channels} channels",
            "give one for each channel, or leave both out",
        )
    return ImageDataset(
        train_images=Images(arrays["train_images"], train),
        train_labels=arrays["train_labels"][train],
        validation_images=Images(arrays["train_images"], validation),
        validation_labels=arrays["train_labels"][validation],
        test_images=Images(arrays["test_images"], test),
        test_labels=arrays["test_labels"][test],
        classes=int(arrays["train_labels"].max()) + 1,
        mean=mean,
        std=std,
        digest=digest,
        source=source,
        class_names=arrays.get(CLASS_NAMES),
    )


def _samples(data: Data, given: UserData, working_directory: str | None) -> SampleDataset:
    """A data set of samples out of what the user's function returned."""
    if data.mean is not None or data.std is not None:
        raise UserError(
            "data.mean and data.std are of arrays of images, and raq.Data is ready for the network", "leave them out"
        )
    splits = given.splits()
    # of arrays all content counts, so that the code which made them need not
    arrays = given.collate is None and all(isinstance(split, Arrays) for split in splits.values())
    known = given.digest is not None or arrays
    code = {} if known else sources_of(data.name, working_directory or str(Path.cwd())).files
    test = _sample(len(splits["test"]), data.test_limit, "data.test_limit", data.name)
    parts = {"test": Part(splits["test"], test)}
    if "train" in splits:
        train, validation = _held_out(len(splits["train"]), data, data.name)
        parts |= {"train": Part(splits["train"], train), "validation": Part(splits["train"], validation)}
        parts["calibration"] = parts["train"]
    if "calibration" in splits:
        parts["calibration"] = Part(splits["calibration"], np.arange(len(splits["calibration"])))
    inputs = describe_inputs(given, splits)
    return SampleDataset(given, parts, inputs, data_digest(given, splits, code), data.name, data.workers)


def calibration_indices(train_count: int, size: int, seed: int) -> Array:
    """Which training images calibrate: a sample without replacement; a smaller size is a prefix of a larger one."""
    return np.random.default_rng(seed).permutation(train_count)[:size]


def _held_out(count: int, data: Data, source: str) -> tuple[Array, Array]:
    """Which of the training split are trained on, and which are held out."""
    train = _sample(count, data.train_limit, "data.train_limit", source)
    held_out = round(len(train) * data.validation_fraction)
    if held_out >= len(train):
        raise UserError(
            f"data.validation_fraction holds out all {len(train)} training images", "lower data.validation_fraction"
        )
    validation = np.sort(np.random.default_rng(LIMIT_SEED + 1).permutation(train)[:held_out])
    return np.setdiff1d(train, validation, assume_unique=True), validation


def _sample(count: int, limit: int | None, key: str, source: str) -> Array:
    if limit is None or limit == count:
        return np.arange(count)
    if limit > count:
        raise UserError(f"{key} is {limit}, and {source} has {count} images", f"lower {key} to at most {count}")
    return np.sort(np.random.default_rng(LIMIT_SEED).permutation(count)[:limit])
