"""Statistics against known values and, by simulation, their coverage on known distributions."""

import numpy as np
import pytest
from scipy import stats

from raq.bench.statistics import (
    median_interval,
    paired_drop,
    proportion_interval,
    quantile,
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


def test_the_medians_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = median_interval(np.exp(rng.normal(0, 0.3, 15)))
        covered += low <= 1.0 <= high
    assert covered / 200 >= 0.90


def test_too_few_values_have_no_interval() -> None:
    assert median_interval([1.0] * 5) is None
    assert median_interval([2.0] * 6) == (2.0, 2.0)


def test_quantiles_are_given_only_where_samples_bear_them() -> None:
    assert (samples_needed(0.9), samples_needed(0.99)) == (29, 299)
    assert quantile(np.arange(298.0), 0.99) is None
    assert quantile(np.arange(299.0), 0.99) == pytest.approx(np.quantile(np.arange(299), 0.99))
