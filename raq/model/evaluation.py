"""Top-1 over a whole split, the last partial batch included."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raq.model.augmentation import normalise
from raq.model.batches import normalisation_tensors, take_batch
from raq.model.cache import Array
from raq.model.dataset import Dataset

Network = Callable[[Tensor], Tensor]


def predict(
    network: Network,
    dataset: Dataset,
    device: str = "cpu",
    batch_size: int = 128,
    split: Literal["validation", "test"] = "test",
) -> Array:
    """The class predicted for every image of the split, int64 [N].

    `network` takes normalised float32 [n, 3, H, W], any n, and gives logits [n, classes].
    """
    everything = np.arange(len(dataset.test_labels if split == "test" else dataset.validation_labels))
    return logits(network, dataset, everything, device, batch_size, lambda given: given.argmax(1), split)


def logits(
    network: Network,
    dataset: Dataset,
    chosen: Array,
    device: str = "cpu",
    batch_size: int = 128,
    keep: Callable[[Tensor], Tensor] = lambda given: given.float(),
    split: Literal["train", "validation", "test"] = "test",
) -> Array:
    """What `keep` makes of the logits [n, classes] of the images `chosen`; by default they themselves, float32.

    Batches are of `batch_size`, the last one smaller if need be.
    """
    where = torch.device(device)
    mean, std = normalisation_tensors(dataset, where)
    images_of_split, labels_of_split = {
        "train": (dataset.train_images, dataset.train_labels),
        "validation": (dataset.validation_images, dataset.validation_labels),
        "test": (dataset.test_images, dataset.test_labels),
    }[split]
    found = []
    with torch.inference_mode():
        for start in range(0, len(chosen), batch_size):
            part = chosen[start : start + batch_size]
            images, _ = take_batch(images_of_split, labels_of_split, part, where)
            found.append(keep(network(normalise(images, mean, std))).cpu())
    kept: Array = torch.cat(found).numpy()
    assert len(kept) == len(chosen)
    return kept


def top1(predicted: Array, labels: Array) -> float:
    """Share of predictions that are right."""
    return float((predicted == labels).mean())
