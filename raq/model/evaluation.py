"""Top-1 over a whole split, the last partial batch included."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from raq.model.augmentation import normalise
from raq.model.cache import Array
from raq.model.data import Dataset
from raq.model.training import normalisation_tensors, take_batch

Network = Callable[[Tensor], Tensor]


def predict(network: Network, dataset: Dataset, device: str = "cpu", batch_size: int = 128) -> Array:
    """The class predicted for every test image, int64 [N].

    `network` takes normalised float32 [n, 3, H, W], any n, and gives logits [n, classes].
    """
    everything = np.arange(len(dataset.test_labels))
    return logits(network, dataset, everything, device, batch_size, lambda given: given.argmax(1))


def logits(
    network: Network,
    dataset: Dataset,
    chosen: Array,
    device: str = "cpu",
    batch_size: int = 128,
    keep: Callable[[Tensor], Tensor] = lambda given: given.float(),
    split: Literal["train", "test"] = "test",
) -> Array:
    """What `keep` makes of the logits [n, classes] of the images `chosen`; by default they themselves, float32.

    Batches are of `batch_size`, the last one smaller if need be.
    """
    where = torch.device(device)
    mean, std = normalisation_tensors(dataset, where)
    images_of_split, labels_of_split = (
        (dataset.train_images, dataset.train_labels) if split == "train" else (dataset.test_images, dataset.test_labels)
    )
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
