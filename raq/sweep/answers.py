"""What a network answered on a split: classes, or scores by a metric; what of two such answers is worse. Neither torch
nor ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raq.experiment.metric import Metric
from raq.statistics.paired import (
    Paired,
    PairedResamples,
    PairedScores,
    mean_interval,
    paired_answers,
    set_interval,
)
from raq.statistics.proportions import CONFIDENCE, Interval, mean_drop, proportion_interval


@dataclass(frozen=True)
class Answers:
    """Of one network. values: int [2, N], the predicted classes and the samples' own (of top-1, where they are kept);
    or the score of each sample [N]; or, if resampled, the metric and what it is on resampled sets; samples: how
    many."""

    metric: Metric
    values: npt.NDArray[Any]
    resampled: bool
    samples: int

    @property
    def has_classes(self) -> bool:
        """Whether classes were kept, not scores."""
        return self.values.ndim == 2

    @property
    def is_binary(self) -> bool:
        """Whether every sample is right or wrong, or has a score of 0 or 1, which is counted the same."""
        return self.has_classes or (not self.resampled and bool(np.isin(self.values, (0.0, 1.0)).all()))

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Of binary ones: which samples have the better of the two, bool [N]."""
        found: npt.NDArray[np.bool_] = (
            self.values[0] == self.values[1] if self.has_classes else (self.values > 0) == self.metric.greater_is_better
        )
        return found

    @property
    def value(self) -> float:
        """The metric; a share as a share."""
        if self.has_classes:
            return float(self.right.mean())
        return float(self.values[0] if self.resampled else self.values.mean())

    def interval(self) -> Interval:
        """Of the value."""
        if self.is_binary:
            ones = self.right if self.metric.greater_is_better else ~self.right
            return proportion_interval(int(ones.sum()), self.samples)
        return set_interval(self.values, self.samples) if self.resampled else mean_interval(self.values)

    def same_samples(self, other: "Answers") -> bool:
        """Whether both were asked the same, as far as can be seen."""
        own, others = ((a.metric, a.resampled, a.samples, a.values.shape) for a in (self, other))
        if own != others:
            return False
        return not self.has_classes or np.array_equal(self.values[1], other.values[1])

    def worse_than(self, baseline: "Answers") -> Paired | None:
        """By how much, on the same samples; None if they are not the same."""
        if not self.same_samples(baseline):
            return None
        if self.is_binary and baseline.is_binary:
            return paired_answers(baseline.right, self.right)._replace(scale=self.metric.scale)
        worse = self._worse(baseline)
        return PairedResamples(worse, self.samples) if self.resampled else PairedScores(worse)

    def _worse(self, baseline: "Answers") -> npt.NDArray[np.float64]:
        """By how much, sample by sample or set by set."""
        found: npt.NDArray[np.float64] = self.metric.sign * self.metric.scale * (baseline.values - self.values)
        return found


def mean_worse(pairs: Sequence[tuple[Answers, Answers]], confidence: float = CONFIDENCE) -> tuple[float, Interval]:
    """By how much the second of each pair is worse than the first, a mean over the pairs: calibrations by seed, say.

    All of one metric and the same samples, with scores in place of classes. The mean is taken sample by sample; the
    interval is over samples.
    """
    first = pairs[0][0]
    if all(answers.is_binary for pair in pairs for answers in pair):
        one, other = (np.stack([pair[side].right for pair in pairs]) for side in (0, 1))
        lost, (low, high) = mean_drop(one, other, confidence)
        share = first.metric.scale / 100  # of a point
        return lost * share, (low * share, high * share)
    worse = np.mean([candidate._worse(baseline) for baseline, candidate in pairs], axis=0)
    paired: Paired = PairedResamples(worse, first.samples) if first.resampled else PairedScores(worse)
    return paired.value, paired.interval(confidence)
