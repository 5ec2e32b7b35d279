"""Batches of images on a device, and what normalises them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raq.model.cache import Array


class Indexed(Protocol):
    """Images that are read by their places."""

    def __getitem__(self, which: Array, /) -> Array:
        """uint8 [n, C, H, W]."""


def normalisation_tensors(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std, by channel, as float32 [C, 1, 1]."""
    first, second = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    return first, second


def take_batch(images: Indexed, labels: Array, indices: Array, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images (uint8 [n, C, H, W]) and labels (int64 [n]) at `indices`, on the device."""
    batch = torch.from_numpy(np.ascontiguousarray(images[indices]))
    return batch.to(device, non_blocking=True), torch.from_numpy(labels[indices]).to(device, non_blocking=True)
