"""How a training goes on: steps in an epoch, image sizes, the optimizer, the learning rate's schedule."""

import math
from collections.abc import Callable

import torch
from torch import nn

from raq.errors import UserError
from raq.experiment.training import Optimisation


def steps_per_epoch(images: int, batch_size: int, world_size: int) -> int:
    """Optimiser steps an epoch; a last batch that cannot give every worker two images is left out."""
    whole, rest = divmod(images, batch_size)
    steps = whole + (rest >= 2 * world_size)
    if steps == 0 or batch_size < 2 * world_size:
        raise UserError(
            f"batch_size {batch_size} of {images} training images is too little for {world_size} workers",
            "every worker needs at least two images a step",
        )
    return steps


def image_side(progressive: tuple[float, ...], epoch: int, epochs: int, full: int) -> int:
    """The image side of an epoch in pixels: the shares go through the epochs in equal parts; multiples of 8 pixels."""
    if not progressive:
        return full
    share = progressive[min(len(progressive) - 1, epoch * len(progressive) // epochs)]
    if share == 1:
        return full
    return min(full, max(8, round(full * share / 8) * 8))


def new_optimizer(model: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on parameters of two axes or more."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.peak_lr, betas=(settings.momentum, 0.999))
    return torch.optim.SGD(groups, lr=settings.peak_lr, momentum=settings.momentum, nesterov=settings.nesterov)


def learning_rate_factor(kind: str, total: int) -> Callable[[int], float]:
    """The learning rate's share of its peak, by step."""
    if kind == "one-cycle":
        peak = max(1, total // 5)
        return lambda step: (step + 1) / peak if step < peak else max(0.0, (total - step) / max(1, total - peak))
    if kind == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, total) / total))
    return lambda step: 1.0
