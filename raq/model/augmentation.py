"""What happens to a batch between the array and the network: crop, flip, scale, normalise.

Vectorised over the batch, on the batch's device; no per-image Python.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AugmentationParams:
    """What is random about a batch: flips bool [N]; offsets of the crop, int64 [N, 2] (rows, columns)."""

    flips: Tensor
    offsets: Tensor

    def part(self, rank: int, world_size: int) -> "AugmentationParams":
        """The draws of every world_size-th image, from the rank-th on."""
        return AugmentationParams(self.flips[rank::world_size], self.offsets[rank::world_size])


def draw(flips: Tensor, padding: int, generator: torch.Generator) -> AugmentationParams:
    """These flips, and random crop offsets beside them, drawn on the CPU so that every device sees the same."""
    return AugmentationParams(flips, torch.randint(0, 2 * padding + 1, (len(flips), 2), generator=generator))


def flips_of(epoch: int, count: int, seed: int) -> Tensor:
    """Which of all `count` images an epoch flips, bool: half of them at random in the first, the others in the next.

    So each is seen both ways in any two epochs (Jordan 2024, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU).
    """
    first = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    return first ^ bool(epoch % 2)


def crop_and_flip(images: Tensor, draws: AugmentationParams, padding: int) -> Tensor:
    """Crop each image (any type, [N, C, H, W]) out of its mirror-padded self at its own offset, and flip some.

    One gather: the source row and column of every pixel of the result are computed, then read at once. Mirror padding,
    as black borders shift the statistics of batch normalisation away from those of whole images.
    """
    count, _, height, width = images.shape
    device = images.device
    offsets, flips = draws.offsets.to(device), draws.flips.to(device)
    rows = _mirrored(offsets[:, 0, None] + torch.arange(height, device=device) - padding, height)  # [N, H]
    columns = torch.arange(width, device=device).expand(count, width)
    columns = torch.where(flips[:, None], width - 1 - columns, columns)
    columns = _mirrored(columns + offsets[:, 1, None] - padding, width)  # [N, W]
    every = torch.arange(count, device=device)
    # images: [N, H, W, C] after the gather, as the indexed dimensions come first
    gathered = images[every[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return gathered.permute(0, 3, 1, 2)


def _mirrored(positions: Tensor, size: int) -> Tensor:
    """Positions beyond an edge, mirrored at the outermost pixel: -1 is 1, size is size - 2."""
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def normalise(images: Tensor, mean: Tensor, std: Tensor, side: int | None = None) -> Tensor:
    """uint8 [N, C, H, W] to float32, pixels / 255 less mean over std; scaled to side x side if that is smaller."""
    scaled = images.to(torch.float32).div_(255)
    if side is not None and side != images.shape[-1]:
        scaled = F.interpolate(scaled, size=(side, side), mode="bilinear", antialias=True)
    return scaled.sub_(mean).div_(std)
