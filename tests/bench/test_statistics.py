"""Statistics against known values and, by simulation, their coverage on known distributions."""

import numpy as np
import pytest
from scipy import stats

from raq.bench.statistics import (
    calm_ratios,
    paired_drop,
    paired_ratio,
    proportion_interval,
    quantile,
    ratio_of_ratios,
    relative_half_width,
    same_accuracy_p,
    samples_needed,
)


def test_wilson() -> None:
    low, high = proportion_interval(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert proportion_interval(10, 10)[1] == pytest.approx(1.0)


def pairs(both: int, lost: int, won: int, neither: int):
    baseline = np.array([True] * (both + lost) + [False] * (won + neither))
    candidate = np.array([True] * both + [False] * lost + [True] * won + [False] * neither)
    return baseline, candidate


def test_paired_drop_and_mcnemar() -> None:
    drop, (low, high) = paired_drop(*pairs(800, 30, 10, 160))
    assert drop == pytest.approx(2.0)
    assert low < 2.0 < high
    assert low > 0
    assert same_accuracy_p(*pairs(800, 30, 10, 160)) == pytest.approx(stats.binomtest(30, 40).pvalue)
    assert same_accuracy_p(*pairs(10, 0, 0, 2)) == 1.0


def test_the_drops_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    shares = [0.90, 0.02, 0.01, 0.07]  # both right, only the baseline, only the candidate, neither: a drop of 1 point
    covered = 0
    for counts in rng.multinomial(2000, shares, size=600):
        low, high = paired_drop(*pairs(*counts))[1]
        covered += low <= 1.0 <= high
    assert 0.93 <= covered / 600 <= 0.98


def launches_of(rng, count: int, between: float, rounds: int = 8) -> list[list[float]]:
    """Ratios around 1 with the spread of real rounds: heavy tails, and a shift that each launch keeps."""
    return [list(np.exp(0.035 * rng.standard_t(3, rounds) + rng.normal(0, between))) for _ in range(count)]


@pytest.mark.parametrize("between", [0.0, 0.01])
def test_a_speedups_interval_covers_the_truth(between: float) -> None:
    """Known distributions; measured until the interval is narrow, which is what makes coverage hard."""
    rng = np.random.default_rng(2)
    runs, covered, slower = 150, 0, 0
    for _ in range(runs):
        launches = launches_of(rng, 6, between)
        while relative_half_width((found := paired_ratio(launches))[1]) > 0.02 and len(launches) < 40:
            launches += launches_of(rng, 1, between)
        low, high = found[1]
        covered += low <= 1.0 <= high
        slower += 0.97 * high < 1
    assert covered / runs >= 0.93
    assert slower / runs >= 0.90, "and 3% are found"


def test_rounds_of_a_launch_are_not_taken_for_independent() -> None:
    rng = np.random.default_rng(3)
    same = [[float(shift)] * 8 for shift in np.exp(rng.normal(0, 0.05, 8))]  # nothing but the launch's own shift
    alone = [[ratio] for launch in same for ratio in launch]
    assert relative_half_width(paired_ratio(same)[1]) > 1.5 * relative_half_width(paired_ratio(alone)[1])


def test_the_bootstrap_of_single_rounds_is_scipys() -> None:
    """Against SciPy's percentile bootstrap of the median, but for the expansion for few values."""
    values = np.random.default_rng(4).normal(1.0, 0.02, 400)
    low, high = paired_ratio([[v] for v in values])[1]
    expected = stats.bootstrap((values,), np.median, method="percentile", rng=np.random.default_rng(1))
    assert low == pytest.approx(expected.confidence_interval.low, abs=5e-4)
    assert high == pytest.approx(expected.confidence_interval.high, abs=5e-4)
    assert paired_ratio([[v] for v in values])[0] == np.median(values)


def test_a_ratio_of_independent_ratios_covers_the_truth() -> None:
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(100):
        ratio, (low, high) = ratio_of_ratios(launches_of(rng, 8, 0.0), launches_of(rng, 8, 0.0))
        assert low <= ratio <= high
        covered += low <= 1.0 <= high
    assert covered >= 93
    assert ratio_of_ratios([[2.0]] * 8, [[1.0]] * 3) == (2.0, None)


def test_too_few_values_have_no_interval() -> None:
    assert paired_ratio([[1.0] * 9] * 5) == (1.0, None)
    assert paired_ratio([[2.0]] * 6) == (2.0, (2.0, 2.0))
    assert relative_half_width((0.98, 1.02)) == pytest.approx(0.0202, abs=1e-4)


def test_disturbed_rounds_are_left_out_if_enough_remain() -> None:
    spoilt = [False, True] * 6
    kept = calm_ratios([0, 0, 1, 1] * 3, [2.0, 9.0] * 6, [1.0] * 12, spoilt)
    assert kept == [[2.0] * 3, [2.0] * 3]
    few = calm_ratios([0] * 8, [2.0, 9.0] * 4, [1.0] * 8, [False, True] * 4)
    assert few == [[2.0, 9.0] * 4]


def test_quantiles_are_given_only_where_samples_bear_them() -> None:
    assert (samples_needed(0.9), samples_needed(0.99)) == (29, 299)
    assert quantile(np.arange(298.0), 0.99) is None
    assert quantile(np.arange(299.0), 0.99) == pytest.approx(np.quantile(np.arange(299), 0.99))
