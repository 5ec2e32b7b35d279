"""Intervals for ratios of latencies, from launches that drift together; and quantiles of latencies."""

import functools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from raq.statistics.proportions import CONFIDENCE, Interval
from raq.statistics.roots import root
from raq.store.results import Agreement

Floats = Sequence[float] | npt.NDArray[np.float64]
Ratios = Sequence[Sequence[float]]  # a list a launch
MIN_LAUNCHES, MIN_UNDISTURBED_LAUNCHES, MIN_UNDISTURBED_ROUNDS, MIN_UNDISTURBED_SHARE = 4, 6, 6, 0.25
MAX_VALUES = 100  # more launches than these count in pairs, fours, ...
TINY = 1e-24
# Models of how launches drift: the correlation of a launch's drift with that of the next one, each equally likely
# before anything is measured, and the share of the variance that is steady, equally likely for each correlation but 0.
# Without the high correlations intervals are too narrow where a machine drifts slowly: launches in a row then agree.
DRIFT_CORRELATIONS, STEADY_SHARES = (0.0, 0.5, 0.8, 0.9, 0.95), (0.0, 0.4, 0.7)


def paired_ratio(launches: Ratios, confidence: float = CONFIDENCE) -> tuple[float, Interval | None]:
    """The ratio of two times, with its interval, from the ratios within rounds; a list a launch, in order of time.

    A launch counts as one value, the median of its rounds' logarithms: its rounds share where their processes' memory
    lies. Launches are no independent sample either: a machine drifts, and those near in time agree. So they are taken
    for the sum of a steady part and a drift (an autoregressive process of first order), whose correlation and share are
    not known: the interval is of the posterior of the mean, with both integrated out over a grid; the estimate is its
    median. Values beyond three deviations (by the median absolute deviation), at most a tenth at either end, are moved
    there, as in a Winsorized mean (Dixon & Tukey 1968). How often such intervals hold the truth under drift, and if
    measuring ends when they are narrow, is simulated in tests/benchmarks/trust.py. No interval below four launches.
    """
    values = np.array([float(np.median(np.log(launch))) for launch in launches])
    while len(values) > MAX_VALUES:
        values = np.array([float(part.mean()) for part in np.array_split(values, -(-len(values) // 2))])
    if len(values) < MIN_LAUNCHES:
        return math.exp(float(np.median(values))), None
    centre, (low, high) = _mean_under_drift(tuple(_winsorized(values).tolist()), confidence)
    return math.exp(centre), (math.exp(low), math.exp(high))


def _winsorized(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The values, with at most a tenth at either end moved: more of them are no accidents, but how the machine is.

    Of fewer than ten none is: a wild one makes the interval as wide as it is far.
    """
    centre, ordered, most = np.median(values), np.sort(values), len(values) // 10
    reach = 3 * 1.4826 * np.median(np.abs(values - centre))
    return np.clip(values, min(centre - reach, ordered[most]), max(centre + reach, ordered[-1 - most]))


@functools.lru_cache(maxsize=8)
def _drifts(count: int) -> tuple[npt.NDArray[np.float64], ...]:
    """What of the models does not depend on the values, a row a model: precision, its sums, their sum, log weight."""
    lag = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    found = []
    for correlation in DRIFT_CORRELATIONS:
        shares = STEADY_SHARES if correlation else (1.0,)
        for steady in shares:
            covariance = (1 - steady) * correlation**lag + steady * np.eye(count)
            precision = np.linalg.inv(covariance)
            total = precision.sum()
            weight = -0.5 * np.linalg.slogdet(covariance)[1] - 0.5 * math.log(total) - math.log(len(shares))
            found.append((precision, precision.sum(axis=1), total, weight))
    return tuple(np.array(part) for part in zip(*found, strict=True))


@functools.lru_cache(maxsize=4096)  # a verdict asks for the same ratio at several places
def _mean_under_drift(launches: tuple[float, ...], confidence: float) -> tuple[float, Interval]:
    """Median and interval of the posterior of the mean: of a weighted sum of Student's t, one a model of the drift."""
    from scipy.special import stdtr

    values = np.array(launches)
    precision, sums, totals, weights = _drifts(len(values))
    free = len(values) - 1
    means = sums @ values / totals
    rest = values - means[:, None]
    spread = np.einsum("mi,mij,mj->m", rest, precision, rest)
    if spread.max() < TINY:  # all launches are equal
        return float(values.mean()), (float(values.mean()), float(values.mean()))
    log_weights = weights - free / 2 * np.log(np.maximum(spread, TINY))
    shares = np.exp(log_weights - log_weights.max())
    shares /= shares.sum()
    scales = np.sqrt(np.maximum(spread, TINY) / free / totals)

    def below(x: float) -> float:
        """The probability that the mean is below."""
        return float(shares @ stdtr(free, (x - means) / scales))

    def at(probability: float) -> float:
        reach = 10.0
        while True:
            low, high = float((means - reach * scales).min()), float((means + reach * scales).max())
            if below(low) < probability < below(high):
                return root(lambda x: below(x) - probability, low, high)
            reach *= 10

    return at(0.5), (at((1 - confidence) / 2), at((1 + confidence) / 2))


def launches_factor(count: int, narrower: float, most: float) -> float | None:
    """How many times as many launches make an interval `narrower` times as wide (0.5: half); None if more than `most`.

    Of launches without drift, simulated: with few launches an interval narrows faster than with their root.
    """
    if count < MIN_LAUNCHES or narrower >= 1:
        return None if narrower < 1 else 1.0
    wanted = narrower * _usual_width(count)
    times = 1.0
    while times <= most:
        if (
            _usual_width(min(MAX_VALUES, round(count * times))) * math.sqrt(min(1.0, MAX_VALUES / (count * times)))
            <= wanted
        ):
            return times
        times *= 1.1
    return None


@functools.cache
def _usual_width(count: int) -> float:
    """The half width for so many launches without drift and with a deviation of 1: the mean of five seeds."""
    widths = []
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=count)
        _, (low, high) = _mean_under_drift(tuple((values - values.mean()) / values.std(ddof=1)), CONFIDENCE)
        widths.append((high - low) / 2)
    return float(np.mean(widths))


def launch_agreement(launches: Ratios) -> Agreement | None:
    """Whether launches agree as well as their rounds would have them; None if they cannot be compared.

    between, within: standard deviations of the logarithm of the ratios, of launches beyond what their rounds explain,
    and of rounds within launches; p: of the analysis of variance that launches do not differ; correlation: of a launch
    with the next one; drift_p: of von Neumann's ratio (1941) that launches near in time agree no more than others. The
    first three are None where launches have one round each.
    """
    from scipy.special import ndtr

    logs = [np.log(np.asarray(launch, dtype=np.float64)) for launch in launches]
    several = [part for part in logs if len(part) > 1]
    values = _winsorized(np.array([float(np.median(part)) for part in logs]))
    if len(values) < MIN_UNDISTURBED_LAUNCHES or values.std() ** 2 < TINY:
        return None
    between = within = p = None
    if len(several) >= MIN_UNDISTURBED_LAUNCHES:
        variance = float(sum(((part - part.mean()) ** 2).sum() for part in several) / sum(len(p) - 1 for p in several))
        typical = len(several) / sum(1 / len(part) for part in several)
        means = _winsorized(np.array([float(part.mean()) for part in several]))
        between = math.sqrt(max(0.0, float(means.var(ddof=1)) - variance / typical))
        within = math.sqrt(variance)
        p = _same_mean_p(several) if variance > TINY else 0.0
    count = len(values)
    rest = values - values.mean()
    neumann = float((np.diff(values) ** 2).sum() / (rest**2).sum())
    # of independent normal values, expectation 2 and this variance
    deviation = math.sqrt(4 * (count - 2) / (count**2 - 1))
    return {
        "between": between,
        "within": within,
        "p": p,
        "correlation": float((rest[1:] * rest[:-1]).sum() / (rest**2).sum()),
        "drift_p": float(ndtr((neumann - 2) / deviation)),
    }


def _same_mean_p(groups: Sequence[npt.NDArray[np.float64]]) -> float:
    """p of the analysis of variance that all groups have the same mean (Fisher 1925)."""
    from scipy.special import fdtrc

    everything = np.concatenate(groups)
    within = sum(float(((part - part.mean()) ** 2).sum()) for part in groups)
    between = sum(len(part) * float((part.mean() - everything.mean()) ** 2) for part in groups)
    free = len(groups) - 1, len(everything) - len(groups)
    return float(fdtrc(*free, (between / free[0]) / (within / free[1])))


def counted_rounds(launch: Sequence[int], disturbed: Sequence[bool]) -> list[int]:
    """Which rounds count, by position: the undisturbed ones, unless too few of them or of their launches remain.

    launch: of each round, whose processes it used; disturbed: whether something disturbed it. Too few are also those of
    less than a quarter of the launches: what such a run mostly saw is not to be thrown away for a rare moment.
    """
    undisturbed = [n for n, excluded in enumerate(disturbed) if not excluded]
    launches, undisturbed_launches = len(set(launch)), len({launch[n] for n in undisturbed})
    wanted = max(min(launches, MIN_UNDISTURBED_LAUNCHES), MIN_UNDISTURBED_SHARE * launches)
    enough = len(undisturbed) >= MIN_UNDISTURBED_ROUNDS and undisturbed_launches >= wanted
    return undisturbed if enough else list(range(len(launch)))


def undisturbed_ratios(
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
