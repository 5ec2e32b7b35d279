"""How a training step is computed: in which type, and in which layout of images in memory. Must not import ray.

What is fastest depends on the network and the CPU: bfloat16 halves a ResNet's step where the CPU multiplies in it, and
makes a network of depthwise convolutions slower. So it is measured, on a copy of the network, before the first epoch.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raq.experiment.training import LARGE_DATA, Optimisation, Precision
from raq.model.batch import Batch
from raq.model.checkpoints import Metrics, TrainingContext

MEASURED_STEPS = 2  # of each way, after one that warms up
ABANDONED_AT = 2.0  # times the best so far: a way whose first step takes so much is not measured further
LEAST_GAIN = 0.9  # a way is taken if its steps take at most this share of the time of those before it
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Compute:
    """How steps are computed. precision: of the arithmetic; weights stay in float32."""

    precision: Precision = "float32"
    channels_last: bool = False

    @classmethod
    def of_row(cls, row: Metrics) -> "Compute":
        """As a row of a history has it."""
        return cls(row["precision"], row["channels_last"])

    @contextmanager
    def arithmetic(self, device: torch.device) -> Iterator[None]:
        """Computing in this precision meanwhile (torch's autocast)."""
        with torch.autocast(device.type, DTYPES[self.precision], enabled=self.precision != "float32"):
            yield

    def lay_out(self, model: nn.Module) -> None:
        """Put a model's kernels into this layout, in place."""
        if self.channels_last:
            model.to(memory_format=torch.channels_last)

    def inputs(self, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """A batch's inputs in this layout."""
        if not self.channels_last:
            return given
        return tuple(one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one for one in given)


def ways(settings: Optimisation, samples: int, device: torch.device) -> list[Compute]:
    """The ways that come into question, the plainest first: one, where settings or the data leave no choice."""
    few = samples < LARGE_DATA
    precisions: tuple[Precision, ...] = ("float32",)
    if settings.precision is not None:
        precisions = (settings.precision,)
    elif not few:
        precisions = ("float32", "bfloat16")
    layouts = (False,) if few else (False, True)
    if settings.channels_last is not None:
        layouts = (settings.channels_last,)
    return [Compute(precision, layout) for precision in precisions for layout in layouts]


def choose(
    model: nn.Module,
    settings: Optimisation,
    samples: int,
    loss: Callable[[Tensor, Any], Tensor],
    batch: Callable[[], Batch],
    context: TrainingContext,
) -> tuple[Compute, Metrics]:
    """The fastest way to compute a step, and what was measured, for the first row of the history.

    batch: gives what is measured on. A way in which the network does not run is left out. Rank 0 measures, on a copy.
    """
    possible = ways(settings, samples, context.device)
    if len(possible) == 1:
        return possible[0], {}
    seconds: list[float | None] = [None] * len(possible)
    if context.rank == 0:
        given = batch()
        for at, one in enumerate(possible):
            enough = min((found for found in seconds if found is not None), default=math.inf) * ABANDONED_AT
            seconds[at] = _seconds(one, model, loss, given, context.device, enough)
    if context.world_size > 1:
        dist.broadcast_object_list(seconds, 0, device=context.device)
    measured = [{**asdict(one), "seconds": found} for one, found in zip(possible, seconds, strict=True)]
    return _fastest(possible, seconds), {"measured_steps": measured}


def _fastest(possible: list[Compute], seconds: list[float | None]) -> Compute:
    """The fastest; of those that differ by less than a tenth, the plainest."""
    best = 0
    for at, found in enumerate(seconds):
        before = seconds[best]
        if found is not None and (before is None or found <= LEAST_GAIN * before):
            best = at
    return possible[best]


def _seconds(
    way: Compute,
    model: nn.Module,
    loss: Callable[[Tensor, Any], Tensor],
    batch: Batch,
    device: torch.device,
    enough: float,
) -> float | None:
    """What a step takes, measured no further where that is more than `enough`; None if the network does not run so (a
    `view` of what is laid out otherwise, say)."""
    own = copy.deepcopy(model)
    way.lay_out(own)
    best = None
    for step in range(1 + MEASURED_STEPS):
        _wait(device)
        started = time.perf_counter()
        try:
            with way.arithmetic(device):
                outputs = own(*way.inputs(batch.inputs))
            loss(outputs.float(), batch.targets).sum().backward()
        except RuntimeError:
            return None
        _wait(device)
        took = time.perf_counter() - started
        if took > enough:
            return took
        if step and (best is None or took < best):
            best = took
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
