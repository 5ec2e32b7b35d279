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

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raq.experiment.training import LARGE_DATA, Optimisation, Precision
from raq.model.batch import Batch
from raq.model.checkpoints import Metrics, TrainingContext

MEASURED_STEPS = 2  # of each way, in turns, after one of each that warms up
ABANDONED_AT = 3.0  # times the shortest warm-up: a way whose own takes more is not measured further
MAX_SHARE_OF_TIME = 0.9  # a way is taken if its steps take at most this share of the time of those before it
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
    model: nn.Module, settings: Optimisation, samples: int, batch: Callable[[], Batch], context: TrainingContext
) -> tuple[Compute, Metrics]:
    """The fastest way to compute a step, and what was measured, for the first row of the history.

    batch: gives what is measured on. A way in which the network does not run is left out. Rank 0 measures, on a copy.
    """
    possible = ways(settings, samples, context.device)
    if len(possible) == 1:
        return possible[0], {}
    seconds: list[float | None] = [None] * len(possible)
    if context.rank == 0:
        seconds = _measure(possible, model, batch(), context.device)
    if context.world_size > 1:
        dist.broadcast_object_list(seconds, 0, device=context.device)
    measured = [{**asdict(one), "seconds": found} for one, found in zip(possible, seconds, strict=True)]
    return _fastest(possible, seconds), {"measured_steps": measured}


def _fastest(possible: list[Compute], seconds: list[float | None]) -> Compute:
    """The fastest; of those that differ by less than a tenth, the plainest."""
    best = 0
    for at, found in enumerate(seconds):
        before = seconds[best]
        if found is not None and (before is None or found <= MAX_SHARE_OF_TIME * before):
            best = at
    return possible[best]


def _measure(possible: list[Compute], model: nn.Module, batch: Batch, device: torch.device) -> list[float | None]:
    """What a step takes each way, seconds: the least of several, taken in turns after each has warmed up.

    None where the network does not run so (a `view` of what is laid out otherwise, say), or cannot be copied.
    """
    found: list[float | None] = []
    for way in possible:
        found.append(_step_seconds(way, model, batch, device))
    first = min((one for one in found if one is not None), default=math.inf)
    going = [at for at, one in enumerate(found) if one is not None and one <= ABANDONED_AT * first]
    best: dict[int, float] = {}
    for _ in range(MEASURED_STEPS):
        for at in going:
            took = _step_seconds(possible[at], model, batch, device)
            if took is not None:
                best[at] = min(took, best.get(at, math.inf))
    return [best.get(at, one) for at, one in enumerate(found)]


def _step_seconds(way: Compute, model: nn.Module, batch: Batch, device: torch.device) -> float | None:
    """What forward and backward take on a copy of the model; None if they fail."""
    try:
        own = copy.deepcopy(model)
        way.lay_out(own)
        inputs = way.inputs(batch.inputs)
        _wait(device)
        started = time.perf_counter()
        with way.arithmetic(device):
            outputs = own(*inputs)
        outputs.float().square().mean().backward()
        _wait(device)
        return time.perf_counter() - started
    except Exception:  # the network is the user's: training itself will say what is wrong with it
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
