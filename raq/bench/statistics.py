"""Statistics of proportions and times, on SciPy. Neither torch nor ray."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Interval = tuple[float, float]
Floats = Sequence[float] | npt.NDArray[np.float64]
Ratios = Sequence[Sequence[float]]  # a list a launch
CONFIDENCE, SIGNIFICANT = 0.95, 0.05
MOST_DRAWN = 2_000_000
RESAMPLES, LEAST_LAUNCHES, LEAST_CALM_ROUNDS = 4000, 6, 6


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


def mean_drop(baseline: npt.NDArray[np.bool_], candidate: npt.NDArray[np.bool_]) -> tuple[float, Interval]:
    """Points of top-1 lost by the candidate, over several seeds: what each got right, bool [seeds, images].

    The mean over seeds is taken image by image; the 95% interval is Student's over images, as the images are the sample
    and the seeds are those that were chosen. Equal answers give an interval of no width.
    """
    from scipy.stats import t

    lost = (baseline.astype(np.float64) - candidate).mean(axis=0)
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(lost) - 1)) * float(lost.std(ddof=1)) / math.sqrt(len(lost))
    mean = float(lost.mean())
    return 100 * mean, (100 * (mean - half), 100 * (mean + half))


def same_accuracy_p(baseline: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> float:
    """p of McNemar's exact test (McNemar 1947) that both are right equally often, on the same images."""
    from scipy.stats import binomtest

    lost, won = int(np.sum(baseline & ~candidate)), int(np.sum(~baseline & candidate))
    return float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def paired_ratio(launches: Ratios) -> tuple[float, Interval | None]:
    """The median of the ratios within rounds, with its 95% interval; a list a launch, whose processes were the same.

    The interval holds two bootstrap intervals (4,000 seeded resamples each): of launches with all their rounds, as
    rounds of one launch share where their processes' memory lies; and of rounds, as the spread between few launches is
    itself uncertain, and measuring ends when the interval is narrow. Either alone covers too rarely then: simulated in
    tests/bench/test_statistics.py. None below six launches.
    """
    every = [[ratio] for launch in launches for ratio in launch]
    estimate = float(np.median([ratio for (ratio,) in every]))
    if len(launches) < LEAST_LAUNCHES:
        return estimate, None
    (low, high), (other_low, other_high) = _bootstrap_median(launches), _bootstrap_median(every)
    return estimate, (min(low, other_low), max(high, other_high))


def _bootstrap_median(clusters: Ratios) -> Interval:
    """Percentile interval of the median of all values, clusters resampled whole.

    Expanded for few clusters (Hesterberg 2015, The American Statistician 69:371, section 5.3): else it is too narrow
    by the difference of t and normal quantiles, and by the root of n over n - 1.
    """
    from scipy.stats import norm, t

    count = len(clusters)
    tail = norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    rng = np.random.default_rng(0)
    part = max(1, min(RESAMPLES, MOST_DRAWN // count))  # so many at a time: memory
    medians = [_pooled_medians(clusters, rng.integers(0, count, (part, count))) for _ in range(-(-RESAMPLES // part))]
    low, high = np.quantile(np.concatenate(medians), [tail, 1 - tail])
    return float(low), float(high)


def _pooled_medians(clusters: Ratios, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """For each row of `chosen` (clusters, with repetition) the median of their pooled values: weighted, by one sort."""
    values = np.concatenate([np.asarray(cluster, dtype=np.float64) for cluster in clusters])
    owner = np.repeat(np.arange(len(clusters)), [len(cluster) for cluster in clusters])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    times = np.zeros((len(chosen), len(clusters)), dtype=np.int64)
    np.add.at(times, (np.arange(len(chosen))[:, None], chosen), 1)
    total = np.cumsum(times[:, owner], axis=1)  # how many values are at most this one, resample by resample
    lower = values[np.argmax(2 * total >= total[:, -1:], axis=1)]
    upper = values[np.argmax(2 * total > total[:, -1:], axis=1)]
    return (lower + upper) / 2


def counted_rounds(launch: Sequence[int], disturbed: Sequence[bool]) -> list[int]:
    """Which rounds count, by position: the undisturbed ones, unless too few of them or of their launches remain.

    launch: of each round, whose processes it used; disturbed: whether something spoilt it.
    """
    calm = [n for n, spoilt in enumerate(disturbed) if not spoilt]
    launches, calm_launches = len(set(launch)), len({launch[n] for n in calm})
    enough = len(calm) >= LEAST_CALM_ROUNDS and calm_launches >= min(launches, LEAST_LAUNCHES)
    return calm if enough else list(range(len(launch)))


def calm_ratios(
    launch: Sequence[int], one_ms: Sequence[float], other_ms: Sequence[float], disturbed: Sequence[bool]
) -> Ratios:
    """The time of one contender over that of another in every round that counts, a list a launch.

    disturbed: whether either of the two was.
    """
    found: dict[int, list[float]] = {}
    for n in counted_rounds(launch, disturbed):
        found.setdefault(launch[n], []).append(one_ms[n] / other_ms[n])
    return list(found.values())


def ratio_of_ratios(one: Ratios, other: Ratios) -> tuple[float, Interval | None]:
    """The median ratio of one measurement over that of another, independent one, with its interval.

    Intervals are added in quadrature on the logarithmic scale, side by side (MOVER: Zou and Donner 2008, Statistics in
    Medicine 27:1693), so that neither has to be symmetric. None if one of the two has none.
    """
    (first, first_interval), (second, second_interval) = paired_ratio(one), paired_ratio(other)
    if first_interval is None or second_interval is None:
        return first / second, None
    a, b = math.log(first), math.log(second)
    (a_low, a_high), (b_low, b_high) = (tuple(map(math.log, i)) for i in (first_interval, second_interval))
    low = a - b - math.hypot(a - a_low, b_high - b)
    high = a - b + math.hypot(a_high - a, b - b_low)
    return first / second, (math.exp(low), math.exp(high))


def relative_half_width(interval: Interval | None) -> float | None:
    """Half the width of a ratio's interval, relative to its geometric centre: 0.02 is plus or minus 2%."""
    return None if interval is None else math.sqrt(interval[1] / interval[0]) - 1


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
