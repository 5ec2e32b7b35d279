"""How a training goes on: steps in an epoch, image sizes, the optimizer, the learning rate's schedule."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from raq.errors import UserError
from raq.experiment.training import Optimisation, Qat

LOG_SCALE = "log_change"  # last part of the names of parameters that are logarithms of scales


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


class Together(torch.optim.Optimizer):
    """Several optimizers that take their steps together, under one schedule."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for one in optimizers for group in one.param_groups], {})
        self._share_groups()

    def _share_groups(self) -> None:
        """A schedule writes learning rates into the groups, which must be the optimizers' own."""
        self.param_groups = [group for one in self.optimizers for group in one.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of each."""
        for one in self.optimizers:
            one.step()

    def state_dict(self) -> dict[str, Any]:
        """That of each."""
        return {"optimizers": [one.state_dict() for one in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each its own."""
        for one, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            one.load_state_dict(state)
        self._share_groups()


def new_optimizer(model: nn.Module, settings: Optimisation) -> torch.optim.Optimizer:
    """SGD or AdamW; weight decay on matrices and kernels only. Logarithms of scales learn by Adam."""
    scales = [p for name, p in model.named_parameters() if name.endswith(LOG_SCALE) and p.requires_grad]
    weights = _optimizer_of_weights(model, settings, {id(scale) for scale in scales})
    if not scales or not isinstance(settings, Qat):
        return weights
    return Together(weights, torch.optim.Adam(scales, lr=settings.scale_lr))


def _optimizer_of_weights(model: nn.Module, settings: Optimisation, scales: set[int]) -> torch.optim.Optimizer:
    learning = [p for p in model.parameters() if p.requires_grad and id(p) not in scales]
    decayed = [p for p in learning if p.ndim > 1]
    others = [p for p in learning if p.ndim <= 1]
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
