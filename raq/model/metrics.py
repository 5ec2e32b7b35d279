"""Metrics: what is found of each sample, and what it comes to over a whole split.

Of a metric that is a mean over samples, the scores are kept: comparisons are paired, sample by sample. Of one of the
whole set, what it is on resampled sets is kept (Efron and Tibshirani 1993, An Introduction to the Bootstrap). Every
candidate is judged on the same resampled sets, so that differences are paired there too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raq.errors import StageError, UserError, first_line
from raq.experiment.metric import Metric
from raq.model.cache import Array
from raq.model.user_code import import_function

RESAMPLES, RESAMPLE_SEED = 1000, 20240  # the same for every candidate
MAX_UNDEFINED = 0.2  # of resampled sets
CHUNK = 50  # resampled sets at a time
TOP = 5


@dataclass(frozen=True)
class Scorer:
    """A metric, ready to be computed. classes: how many there are, where there are any; own: the user's function."""

    metric: Metric
    classes: int | None = None
    own: Callable[..., Any] | None = None

    def of_batch(self, output: Tensor, targets: Any) -> Any:
        """What is kept of a batch: an array [n, k], or (outputs, targets) of a function of the whole set.

        output: [n, ...]; targets: as collated. Raises StageError if they do not fit the metric.
        """
        try:
            if self.own is not None:
                return self._by_own(output.detach().cpu().float().numpy(), _plain(targets))
            found: Tensor = _BUILT_IN[self.metric.function](output.detach(), _as_tensor(targets), self.classes)
        except Exception as error:  # the user's function raises what it likes
            raise StageError(
                f"the metric {self.metric.function} cannot be computed of outputs {list(output.shape)} and targets "
                f"{_described(targets)}: {first_line(error)}",
                "see what the network gives (model.output) and what the data's targets are",
            ) from error
        return found.cpu().numpy().reshape(len(output), -1)

    def _by_own(self, outputs: Array, targets: Any) -> Any:
        assert self.own is not None
        if self.metric.per == "set":
            return outputs, targets
        return np.array([[float(self.own(output, target))] for output, target in zip(outputs, targets, strict=True)])

    def together(self, parts: Sequence[Any]) -> "Scores":
        """The scores of all batches."""
        if self.metric.per == "sample":
            return Scores(np.concatenate(parts)[:, 0].astype(np.float64), False)
        if self.own is None:
            counts = np.concatenate(parts).astype(np.float64)
            return Scores(np.concatenate([[_mean_iou(counts.sum(0))], _resampled_iou(counts)]), True)
        return Scores(self._resampled(parts), True)

    def value_of(self, parts: Sequence[Any]) -> float:
        """The metric alone, of all batches."""
        if self.metric.per == "sample":
            return float(np.concatenate(parts).mean())
        return _mean_iou(np.concatenate(parts).sum(0)) if self.own is None else self._own_value(*_both(parts), None)

    def _own_value(self, outputs: Any, targets: Any, chosen: Array | None) -> float:
        """The user's function of the whole set, or of the samples `chosen`."""
        assert self.own is not None
        try:
            given = (outputs, targets) if chosen is None else (_taken(outputs, chosen), _taken(targets, chosen))
            return float(self.own(*given))
        except Exception as error:  # the user's function raises what it likes
            raise StageError(
                f"the metric {self.metric.function} fails: {type(error).__name__}: {first_line(error)}",
                "it is called with all outputs and all targets, and again with samples drawn from them",
            ) from error

    def _resampled(self, parts: Sequence[Any]) -> Array:
        """The user's function of the whole set, then of every resampled one."""
        (outputs, targets), draws = _both(parts), np.random.default_rng(RESAMPLE_SEED)
        count = len(outputs)
        sets = (draws.integers(0, count, count) for _ in range(RESAMPLES))
        found = [self._own_value(outputs, targets, None)]
        for chosen in sets:
            try:
                found.append(self._own_value(outputs, targets, chosen))
            except StageError:
                found.append(math.nan)  # a set without a sample of some class, say: it is left out
        found = [found[0], *(value if math.isfinite(value) else math.nan for value in found[1:])]
        if np.isnan(found[1:]).mean() > MAX_UNDEFINED:
            raise StageError(
                f"the metric {self.metric.function} is undefined on more than {100 * MAX_UNDEFINED:.0f}% of sets drawn "
                "from the samples",
                "so few samples have no interval; give more, or a metric of single samples",
            )
        return np.array(found)


@dataclass(frozen=True)
class Scores:
    """What a split came to. values: a score a sample; or, if resampled, the metric, then what it is on resampled sets.
    In the metric's own unit, shares as shares."""

    values: Array
    resampled: bool

    @property
    def value(self) -> float:
        """The metric over the whole split."""
        return float(self.values[0] if self.resampled else self.values.mean())

    def refuse_not_finite(self, split: str) -> None:
        """StageError unless every score, or the metric of the whole split, is a finite number."""
        if not np.isfinite(self.values[:1] if self.resampled else self.values).all():
            raise StageError(
                f"the metric is not finite on the {split} split",
                "see whether the network gives finite numbers, and what the metric makes of single samples",
            )


def scorer_of(metric: Metric, classes: int | None, working_directory: str | None) -> Scorer:
    """The metric, its function imported; UserError if that cannot be, or if the metric needs classes."""
    if metric.needs_classes and classes is None:
        raise UserError(
            f"metric {metric.function} is about classes, and the data say not how many there are",
            "give raq.Data(classes=...), or another metric",
        )
    own = None if metric.is_built_in else import_function(metric.function, working_directory)
    return Scorer(metric, classes, own)


def _top(output: Tensor, targets: Tensor, most: int) -> Tensor:
    if output.ndim != 2 or targets.numel() != len(output):
        raise ValueError("outputs are to be logits [n, classes], and targets a class a sample")
    best = output.topk(min(most, output.shape[1]), dim=1).indices  # [n, most]
    return (best == targets.reshape(-1, 1)).any(1).double()


def _squared_error(output: Tensor, targets: Tensor, classes: int | None) -> Tensor:
    return _like(targets, output).sub(output).double().square().flatten(1).mean(1)


def _cosine(output: Tensor, targets: Tensor, classes: int | None) -> Tensor:
    return torch.nn.functional.cosine_similarity(output.flatten(1).double(), targets.flatten(1).double(), dim=1)


def _overlaps(output: Tensor, targets: Tensor, classes: int | None) -> Tensor:
    """Of each sample, [n, 2 * classes]: the places of each class in both masks, then in either.

    Targets outside of the classes (255, say) are left aside, as is usual.
    """
    assert classes is not None
    found, wanted = output.argmax(1).flatten(1), targets.flatten(1).long()  # [n, places]
    known = (wanted >= 0) & (wanted < classes)
    both, either = [], []
    for number in range(classes):
        one, other = (found == number) & known, wanted == number
        both.append((one & other).sum(1))
        either.append((one | other).sum(1))
    return torch.stack([*both, *either], 1)


_BUILT_IN: dict[str, Callable[[Tensor, Tensor, int | None], Tensor]] = {
    "top1": lambda output, targets, classes: _top(output, targets, 1),
    "top5": lambda output, targets, classes: _top(output, targets, TOP),
    "mse": _squared_error,
    "cosine": _cosine,
    "mean_iou": _overlaps,
}


def _mean_iou(counts: Array) -> float:
    """Of [2 * classes]: the mean over the classes that occur in either."""
    both, either = np.split(counts, 2)
    return float((both[either > 0] / either[either > 0]).mean()) if (either > 0).any() else 0.0


def _resampled_iou(counts: Array) -> Array:
    """Of [n, 2 * classes]: the mean over classes on resampled sets, [RESAMPLES]."""
    draws, count = np.random.default_rng(RESAMPLE_SEED), len(counts)
    found: list[float] = []
    for _ in range(RESAMPLES // CHUNK):
        weights = draws.multinomial(count, np.full(count, 1 / count), CHUNK)  # [CHUNK, n]
        found += [_mean_iou(row) for row in weights @ counts]
    return np.array(found)


def _as_tensor(targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise TypeError("targets are no tensor; this metric wants one")
    return targets


def _like(targets: Tensor, output: Tensor) -> Tensor:
    """Targets in the shape of the output, where only axes of one differ, as of single numbers; ValueError else."""
    if [size for size in targets.shape if size != 1] != [size for size in output.shape if size != 1]:
        raise ValueError("outputs and targets have different shapes")
    return targets.reshape(output.shape)


def _plain(targets: Any) -> Any:
    """Targets as NumPy has them, a target a sample."""
    return targets.detach().cpu().numpy() if isinstance(targets, Tensor) else targets


def _both(parts: Sequence[Any]) -> tuple[Any, Any]:
    """All outputs, and all targets."""
    return _joined([part[0] for part in parts]), _joined([part[1] for part in parts])


def _joined(parts: Sequence[Any]) -> Any:
    """All batches as one array; as a list of samples where their shapes differ, or where they are no arrays."""
    if all(isinstance(part, np.ndarray) for part in parts) and len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return [sample for part in parts for sample in part]


def _taken(values: Any, chosen: Array) -> Any:
    return values[chosen] if isinstance(values, np.ndarray) else [values[at] for at in chosen]


def _described(targets: Any) -> str:
    return str(list(targets.shape)) if isinstance(targets, Tensor) else type(targets).__name__
