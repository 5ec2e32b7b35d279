"""Batches of images on a device, and what normalises them."""

import numpy as np
import torch
from torch import Tensor

from raq.model.cache import Array
from raq.model.dataset import Dataset, Images


def normalisation_tensors(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and std as float32 [3, 1, 1]."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (dataset.mean, dataset.std))
    return mean, std


def take_batch(images: Images, labels: Array, indices: Array, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images (uint8 [n, 3, H, W]) and labels (int64 [n]) at `indices`, on the device."""
    batch = torch.from_numpy(np.ascontiguousarray(images[indices]))
    return batch.to(device, non_blocking=True), torch.from_numpy(labels[indices]).to(device, non_blocking=True)
