"""What is odd about data, looked at once before a run: empty classes, labels out of range, dead channels, images that
both splits have. Neither torch nor ray at its top.
"""

import hashlib
import math
from typing import Any

import numpy as np

from raq.errors import UserError
from raq.model.cache import Array
from raq.model.data import Arrays
from raq.model.dataset import Dataset
from raq.model.images import ImageDataset, Images
from raq.model.samples import SampleDataset

MAX_COMPARED = 400_000  # images; of more, finding equal ones would take minutes
LOOKED_AT = 1000  # images, for channels in which nothing changes
LOOKED_AT_BYTES = 32 * 2**20  # of them at most
SHOWN = 5


def data_notes(dataset: Dataset) -> list[str]:
    """A sentence for each oddity; UserError for labels that no class has."""
    if isinstance(dataset, ImageDataset):
        return [
            *_empty_classes(dataset.train_labels, dataset.classes),
            *_dead_channels(dataset.train_images),
            *_shared(dataset),
        ]
    if not isinstance(dataset, SampleDataset):
        return []
    labels = [] if dataset.classes is None else _of_samples(dataset, dataset.classes)
    return [*labels, *_shared_samples(dataset)]


def _of_samples(dataset: SampleDataset, classes: int) -> list[str]:
    """Of labels that are there as an array; others would have to be read, sample by sample."""
    notes: list[str] = []
    for name, part in dataset.parts.items():
        if name == "validation" or not isinstance(part.dataset, Arrays) or part.dataset.targets is None:
            continue
        labels = np.asarray(part.dataset.targets)
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            continue
        if labels.min() < 0 or labels.max() >= classes:
            raise UserError(
                f"raq.Data({name}=...) has labels from {labels.min()} to {labels.max()}, and classes is {classes}",
                "labels are whole numbers from 0 to classes - 1",
            )
        if name == "train":
            notes += _empty_classes(labels, classes)
    return notes


def _shared_samples(dataset: SampleDataset) -> list[str]:
    """That test samples are among the training samples, where both are arrays: others would have to be read."""
    trained, tested = (_digests_of(dataset, split) for split in ("train", "test"))
    if trained is None or tested is None:
        return []
    known = set(trained)
    return _told(sum(digest in known for digest in tested), len(tested), "samples")


def _digests_of(dataset: SampleDataset, split: str) -> list[bytes] | None:
    """What tells a split's samples apart; None if it is not there as arrays, or is too large."""
    part = dataset.parts.get(split)
    if part is None or not isinstance(part.dataset, Arrays) or len(part.indices) > MAX_COMPARED // 2:
        return None
    return [_digest_of_sample(part.dataset[int(at)][0]) for at in part.indices]


def _digest_of_sample(inputs: Any) -> bytes:
    tensors = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.digest()


def _told(count: int, samples: int, what: str) -> list[str]:
    if not count:
        return []
    share = 100 * count / samples
    return [f"{count} of the test {what} ({share:.1f}%) are training {what} too: accuracy is flattered"]


def _empty_classes(labels: Array, classes: int) -> list[str]:
    """That classes have no training sample, as happens to labels that begin at 1 or have gaps."""
    empty = np.setdiff1d(np.arange(classes), labels)
    if not len(empty):
        return []
    named = ", ".join(map(str, empty[:SHOWN])) + (", ..." if len(empty) > SHOWN else "")
    one = "1 class has" if len(empty) == 1 else f"{len(empty)} classes have"
    return [f"{one} no training sample ({named}): the network has outputs for them; do labels begin at 0?"]


def _dead_channels(images: Images) -> list[str]:
    """That a channel is the same number in every pixel of the first images."""
    most = max(2, LOOKED_AT_BYTES // math.prod(images.shape[1:]))
    seen = images[np.arange(min(LOOKED_AT, most, len(images)))]
    dead = [str(c) for c in range(seen.shape[1]) if seen[:, c].min() == seen[:, c].max()]
    return [f"nothing changes in channel {' and '.join(dead)} of the first {len(seen)} images"] if dead else []


def _shared(dataset: ImageDataset) -> list[str]:
    """That test images are among the training images, by their pixels, or by their files' contents."""
    if len(dataset.train_images) + len(dataset.test_images) > MAX_COMPARED:
        return []
    known = set(dataset.train_images.digests())
    count = sum(digest in known for digest in dataset.test_images.digests())
    return _told(count, len(dataset.test_images), "images")
