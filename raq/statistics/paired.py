"""What one candidate loses against another on the same samples: a value, its interval, what more samples would give.

Right or wrong answers have the score interval for matched pairs (proportions.py). Scores of any size are resampled in
pairs (Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13, percentiles), and never trusted further
than Student's interval of their differences, which is wider where samples are few. Neither torch nor ray.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from raq.statistics.proportions import (
    CONFIDENCE,
    Interval,
    discordant,
    drop_interval,
    normal_quantile,
    student_quantile,
)

Values = npt.NDArray[np.float64]
RESAMPLES, SEED, CHUNK = 2000, 20240, 100
MAX_RESAMPLED = 20_000  # samples; of more Student's interval differs from the resampled one by less than is printed


class Paired(Protocol):
    """A drop: how much worse a candidate is, in points or in the metric's unit; less than 0 if it is better."""

    @property
    def value(self) -> float:
        """What was found."""

    @property
    def samples(self) -> int:
        """On how many samples."""

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Where it lies."""

    def more(self, times: float) -> "Paired":
        """What so many times as many samples of the same kind would give."""


class PairedAnswers(NamedTuple):
    """Right and wrong answers. lost: samples that only the baseline has right; won: only the candidate; images: all.

    scale: 100 for points, 1 where the metric counts shares.
    """

    lost: float
    won: float
    images: float
    scale: float = 100.0

    @property
    def value(self) -> float:
        """Points, or shares, lost."""
        return self.scale * (self.lost - self.won) / self.images

    @property
    def samples(self) -> int:
        """How many were compared."""
        return int(self.images)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Tango's score interval."""
        low, high = drop_interval(self.lost, self.won, self.images, confidence)
        return low * self.scale / 100, high * self.scale / 100

    def more(self, times: float) -> "PairedAnswers":
        """The same shares of more."""
        return PairedAnswers(self.lost * times, self.won * times, self.images * times, self.scale)


@dataclass(frozen=True)
class PairedScores:
    """Scores by sample. differences: how much worse each sample is, [N]; times: how many times as many there are.

    known: by confidence, intervals that were found: resampling takes a second for many samples.
    """

    differences: Values
    times: float = 1.0
    known: dict[float, Interval] = field(default_factory=dict, compare=False)

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.differences.mean())

    @property
    def samples(self) -> int:
        """How many were compared."""
        return round(len(self.differences) * self.times)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Of the mean, resampled, and Student's where that is wider."""
        if confidence not in self.known:
            self.known[confidence] = mean_interval(self.differences, confidence)
        return _shrunk(self.known[confidence], self.value, self.times)

    def more(self, times: float) -> "PairedScores":
        """An interval narrower by the square root."""
        return PairedScores(self.differences, self.times * times, self.known)


@dataclass(frozen=True)
class PairedResamples:
    """A metric of the whole set. differences: how much worse on the set itself, then on resampled sets; count: of
    samples."""

    differences: Values
    count: int
    times: float = 1.0

    @property
    def value(self) -> float:
        """On the set itself."""
        return float(self.differences[0])

    @property
    def samples(self) -> int:
        """How many were compared."""
        return round(self.count * self.times)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """Percentiles over resampled sets, wider where samples are few."""
        return _shrunk(set_interval(self.differences, self.count, confidence), self.value, self.times)

    def more(self, times: float) -> "PairedResamples":
        """An interval narrower by the square root."""
        return PairedResamples(self.differences, self.count, self.times * times)


def paired_answers(baseline: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> PairedAnswers:
    """Of what each got right, bool [N] each, on the same samples."""
    lost, won = discordant(baseline, candidate)
    return PairedAnswers(lost, won, len(baseline))


def mean_interval(values: Values, confidence: float = CONFIDENCE) -> Interval:
    """Of the mean of values [N]; without bounds for fewer than two."""
    count, mean = len(values), float(values.mean())
    if count < 2:
        return -math.inf, math.inf
    half = student_quantile(0.5 + confidence / 2, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    if count > MAX_RESAMPLED:
        return mean - half, mean + half
    draws = np.random.default_rng(SEED)
    shares = np.full(count, 1 / count)
    means = np.concatenate(
        [draws.multinomial(count, shares, CHUNK) @ values / count for _ in range(RESAMPLES // CHUNK)]
    )
    low, high = percentiles(means, confidence)
    return min(low, mean - half), max(high, mean + half)


def set_interval(values: Values, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Of a metric of a set of so many samples. values: on the set, then on resampled ones; NaN where it is undefined.

    Percentiles, as much wider as Student's quantile is than the normal one; without bounds for fewer than two samples.
    """
    if count < 2:
        return -math.inf, math.inf
    low, high = percentiles(values[1:], confidence)
    sure = 0.5 + confidence / 2
    wider = student_quantile(sure, count - 1) / normal_quantile(sure) * math.sqrt(count / (count - 1))
    return float(values[0] - wider * (values[0] - low)), float(values[0] + wider * (high - values[0]))


def percentiles(values: Values, confidence: float = CONFIDENCE) -> Interval:
    """The values between which so large a share of them lies."""
    low, high = np.nanquantile(values, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _shrunk(interval: Interval, value: float, times: float) -> Interval:
    """As of so many times as many samples."""
    low, high = interval
    return value - (value - low) / math.sqrt(times), value + (high - value) / math.sqrt(times)
