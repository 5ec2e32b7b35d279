"""Intervals and tests for accuracies: proportions, and paired differences of them. Neither torch nor ray.

On scipy.special, whose import takes a tenth of the time of scipy.stats: a second at every `raq show`.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from raq.statistics.roots import root

Interval = tuple[float, float]
CONFIDENCE = 0.95


def proportion_interval(successes: int, trials: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), 95%."""
    z = normal_quantile(0.5 + CONFIDENCE / 2)
    share, squared = successes / trials, z * z / trials
    centre = (share + squared / 2) / (1 + squared)
    half = z * math.sqrt(share * (1 - share) / trials + squared / (4 * trials)) / (1 + squared)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == trials else min(1.0, centre + half)


def normal_quantile(probability: float) -> float:
    """Of the standard normal distribution."""
    from scipy.special import ndtri

    return float(ndtri(probability))


def student_quantile(probability: float, freedom: float) -> float:
    """Of Student's t with so many degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))


def together(count: int) -> float:
    """The confidence of each of so many intervals that hold together with 95% (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, count)


def discordant(baseline: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> tuple[int, int]:
    """How many images only the baseline has right, and how many only the candidate (bool [N] each, same images)."""
    return int(np.sum(baseline & ~candidate)), int(np.sum(~baseline & candidate))


def paired_drop(
    baseline: npt.NDArray[Any], candidate: npt.NDArray[Any], confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """Points of top-1 lost by the candidate, with its interval, from what each got right (bool [N], same images)."""
    lost, won = discordant(baseline, candidate)
    return 100 * (lost - won) / len(baseline), drop_interval(lost, won, len(baseline), confidence)


def drop_interval(lost: float, won: float, images: float, confidence: float = CONFIDENCE) -> Interval:
    """The interval of a drop in points: `lost` images only the baseline has right, `won` only the candidate.

    Score interval for matched pairs (Tango 1998, Statistics in Medicine 17:891): all drops that the score test does not
    reject. The test of no drop among them is McNemar's, so that the interval leaves out 0 exactly where
    `same_accuracy_p` is below 1 - confidence.
    """
    quantile_of_normal = normal_quantile(0.5 + confidence / 2)

    def score(drop: float) -> float:
        """The standardised distance of what was found from this drop, whose discordant share is estimated under it."""
        b = -lost - won + (2 * images - lost + won) * drop
        c = -won * drop * (1 - drop)
        only_candidate = (math.sqrt(max(0.0, b * b - 8 * images * c)) - b) / (4 * images)
        variance = images * (2 * only_candidate + drop * (1 - drop))
        distance = lost - won - images * drop
        return (
            distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
        )

    estimate, edge = (lost - won) / images, 1 - 1e-12

    def below(drop: float) -> float:
        return score(drop) - quantile_of_normal

    def above(drop: float) -> float:
        return score(drop) + quantile_of_normal

    low = root(below, -edge, estimate) if below(-edge) > 0 > below(estimate) else -1.0
    high = root(above, estimate, edge) if above(estimate) > 0 > above(edge) else 1.0
    return 100 * low, 100 * high


def mean_drop(
    baseline: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_], confidence: float = CONFIDENCE
) -> tuple[float, Interval]:
    """Points of top-1 lost by the candidate, over several seeds: what each got right, bool [seeds, images].

    The mean over seeds is taken image by image; the interval is Student's over images, as the images are the sample
    and the seeds are those that were chosen. To the squares of the deviations that of the quantile is added, as if so
    many more images differed: without any that differ the interval is Tango's (`drop_interval`), not of no width.
    """
    lost = (baseline.astype(np.float64) - candidate).mean(axis=0)
    count, mean, sure = len(lost), float(lost.mean()), 0.5 + confidence / 2
    differing = normal_quantile(sure) ** 2
    squares = float(((lost - mean) ** 2).sum()) + differing
    half = student_quantile(sure, max(1, count - 1)) * math.sqrt(squares) / (count + differing)
    return 100 * mean, (100 * (mean - half), 100 * (mean + half))


def same_accuracy_p(baseline: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> float:
    """p of McNemar's test (McNemar 1947) that both are right equally often, on the same images: the score test."""
    from scipy.special import chdtrc

    lost, won = discordant(baseline, candidate)
    return float(chdtrc(1, (lost - won) ** 2 / (lost + won))) if lost + won else 1.0
