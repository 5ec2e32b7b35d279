"""Top-1 over a whole split, the last partial batch included."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from raq.model.augmentation import normalise
from raq.model.data import Array, Dataset
from raq.model.training import normalisation_tensors, take_batch

Network = Callable[[Tensor], Tensor]


def predict(network: Network, dataset: Dataset, device: str = "cpu", batch_size: int = 128) -> Array:
    """The class predicted for every test image, int64 [N].

    `network` takes normalised float32 [n, 3, H, W], any n, and gives logits [n, classes].
    """
    where = torch.device(device)
    mean, std = normalisation_tensors(dataset, where)
    found = []
    with torch.inference_mode():
        for start in range(0, len(dataset.test_labels), batch_size):
            part = np.arange(start, min(start + batch_size, len(dataset.test_labels)))
            images, _ = take_batch(dataset.test_images, dataset.test_labels, part, where)
            found.append(network(normalise(images, mean, std)).argmax(1).cpu())
    predicted = torch.cat(found).numpy()
    assert predicted.shape == dataset.test_labels.shape
    return predicted


def top1(predicted: Array, labels: Array) -> float:
    """Share of predictions that are right."""
    return float((predicted == labels).mean())
