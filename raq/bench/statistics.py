"""Statistics of proportions and times, on SciPy. Neither torch nor ray."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]
Floats = Sequence[float] | npt.NDArray[np.float64]
CONFIDENCE = 0.95


def proportion_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), 95%."""
    from scipy.stats import binomtest

    found = binomtest(successes, trials).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)


def paired_drop(baseline: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> tuple[float, Interval]:
    """Points of top-1 lost by the candidate, with a 95% interval, from what each got right (bool [N], same images).

    Adjusted Wald interval for matched pairs (Agresti & Min 2005, Statistics in Medicine 24:729): half a pair is added
    to each cell of the 2x2 table, which keeps its coverage where few images differ.
    """
    from scipy.stats import norm

    lost = int(np.sum(baseline & ~candidate))
    won = int(np.sum(~baseline & candidate))
    count = len(baseline)
    drop = (lost - won) / count
    lost_adjusted, won_adjusted, total = lost + 0.5, won + 0.5, count + 2
    centre = (lost_adjusted - won_adjusted) / total
    variance = (lost_adjusted + won_adjusted - (lost_adjusted - won_adjusted) ** 2 / total) / total**2
    half = float(norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt(variance)
    return 100 * drop, (100 * (centre - half), 100 * (centre + half))


def same_accuracy_p(baseline: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> float:
    """p of McNemar's exact test (McNemar 1947) that both are right equally often, on the same images."""
    from scipy.stats import binomtest

    lost, won = int(np.sum(baseline & ~candidate)), int(np.sum(~baseline & candidate))
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def median_interval(values: Floats) -> Interval | None:
    """Bootstrap percentile interval of the median, 95%, 4,000 seeded resamples; None below six values."""
    from scipy.stats import bootstrap

    if len(values) < 6:  # below six even the extremes cover a median less than 95% of the time (1 - 2 * 2**-n)
        return None
    if min(values) == max(values):
        return float(values[0]), float(values[0])
    found = bootstrap(
        (np.asarray(values),),
        np.median,
        n_resamples=4000,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def quantile(values: Floats, share: float) -> float | None:
    """The quantile, or None if there are too few values for one of them to lie beyond it with 95% confidence.

    n values all lie below the true quantile with probability share**n; so n is at least log(0.05) / log(share):
    29 for p90, 299 for p99 (the one-sided order-statistic bound).
    """
    if len(values) < samples_needed(share):
        return None
    return float(np.quantile(np.asarray(values), share))


def samples_needed(share: float) -> int:
    """How many values `quantile` wants for this share."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(share))
