"""Statistics against known values and, by simulation, their coverage on known distributions."""

import numpy as np
import pytest
from scipy import stats

from raq.bench.ratio_statistics import (
    _drifts,
    counted_rounds,
    launch_agreement,
    paired_ratio,
    quantile,
    ratio_of_ratios,
    relative_half_width,
    samples_needed,
    undisturbed_ratios,
)
from raq.statistics.proportions import drop_interval, paired_drop, proportion_interval, same_accuracy_p


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
    assert same_accuracy_p(*pairs(800, 30, 10, 160)) == pytest.approx(stats.chi2.sf(10, 1))  # (30 - 10)**2 / 40
    assert same_accuracy_p(*pairs(10, 0, 0, 2)) == 1.0


def test_the_drops_interval_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    shares = [0.90, 0.02, 0.01, 0.07]  # both right, only the baseline, only the candidate, neither: a drop of 1 point
    covered = 0
    for counts in rng.multinomial(2000, shares, size=600):
        low, high = paired_drop(*pairs(*counts))[1]
        covered += low <= 1.0 <= high
    assert 0.93 <= covered / 600 <= 0.98


def test_a_drops_interval_and_its_test_cannot_disagree() -> None:
    for images in (30, 359, 10_000):
        for lost, won in ((0, 0), (1, 0), (4, 0), (0, 5), (9, 2), (12, 3), (30, 10), (15, 15)):
            low, high = drop_interval(lost, won, images)
            different = same_accuracy_p(*pairs(0, lost, won, 50)) < 0.05
            assert different == (not low <= 0 <= high), (images, lost, won)
            assert low <= 100 * (lost - won) / images <= high


def test_a_drops_interval_against_published_ones() -> None:
    """Tango 1998: without a discordant pair it is plus or minus z**2 / (n + z**2); and all pairs may be discordant."""
    z2 = stats.norm.ppf(0.975) ** 2
    assert drop_interval(0, 0, 359) == pytest.approx((-100 * z2 / (359 + z2), 100 * z2 / (359 + z2)))
    assert drop_interval(50, 0, 50)[1] == 100.0
    narrow, wide = (drop_interval(9, 2, 1000, confidence) for confidence in (0.9, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


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


def drifting(rng, correlation: float, deviation: float, count: int = 30) -> list[list[float]]:
    """Launches of two rounds whose shifts are an autoregressive process, as on a machine that drifts."""
    shifts = [rng.normal(0, deviation)]
    while len(shifts) < count:
        shifts.append(correlation * shifts[-1] + rng.normal(0, deviation * np.sqrt(1 - correlation**2)))
    return [list(np.exp(shift + 0.02 * rng.standard_t(3, 2))) for shift in shifts]


@pytest.mark.parametrize("deviation", [0.02, 0.03])
def test_a_speedups_interval_covers_the_truth_under_drift(deviation: float) -> None:
    """Measured until the interval is narrow; a bootstrap of launches covers two thirds of the time here."""
    rng, runs, covered = np.random.default_rng(6), 150, 0
    for _ in range(runs):
        launches = drifting(rng, 0.8, deviation)
        for count in (12, 16, 20, 25, 30):
            low, high = paired_ratio(launches[:count])[1]
            if relative_half_width((low, high)) <= 0.02:
                break
        covered += low <= 1.0 <= high
    assert covered / runs >= 0.9


def test_an_interval_is_no_narrower_than_students() -> None:
    """A launch is one value, however many rounds it has, and a drift is never excluded."""
    values = np.random.default_rng(3).normal(0, 0.05, 8)
    same = [[float(shift)] * 8 for shift in np.exp(values)]  # nothing but the launch's own shift
    student = stats.t.interval(0.95, 7, values.mean(), values.std(ddof=1) / np.sqrt(8))
    low, high = paired_ratio(same)[1]
    assert low < np.exp(student[0]) < np.exp(student[1]) < high
    narrow, wide = (paired_ratio(same, confidence)[1] for confidence in (0.9, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_without_a_drift_the_interval_is_students() -> None:
    """The mixture of drifts, cut down to none: the mean of the logarithms, and Student's interval of it."""
    values = np.random.default_rng(4).normal(0, 0.02, 40)
    precision, sums, totals, weights = (part[:1] for part in _drifts(40))
    assert totals[0] == pytest.approx(40)
    assert np.allclose(precision[0], np.eye(40))
    assert np.allclose(sums, 1)
    assert weights[0] == pytest.approx(-0.5 * np.log(40))
    estimate, (low, high) = paired_ratio([[float(np.exp(v))] for v in values])
    student = stats.t.interval(0.95, 39, values.mean(), values.std(ddof=1) / np.sqrt(40))
    assert np.log(estimate) == pytest.approx(values.mean(), abs=0.2 * (student[1] - student[0]))
    assert low < np.exp(student[0]) < np.exp(student[1]) < high


def test_one_wild_launch_does_not_decide() -> None:
    values = [1.0 + 0.001 * n for n in range(-5, 6)]
    wild = [[v] for v in values] + [[50.0]]
    assert paired_ratio(wild)[0] == pytest.approx(1.0, abs=0.01)


def test_a_minority_of_launches_is_no_accident() -> None:
    """A machine with two speeds, one of them four times of ten: the interval holds both."""
    values = [1.0] * 12 + [1.6] * 8
    low, high = paired_ratio([[v] for v in values])[1]
    assert low < 1.1
    assert high > 1.3


def test_launches_that_disagree_are_noticed() -> None:
    rng = np.random.default_rng(7)
    alarms = [launch_agreement(drifting(rng, 0.0, 0.0)) for _ in range(200)]
    assert sum(found["p"] < 0.01 for found in alarms) <= 8
    assert sum(found["drift_p"] < 0.01 for found in alarms) <= 8
    shifted = launch_agreement(drifting(rng, 0.0, 0.2))
    assert shifted["p"] < 0.001
    assert shifted["between"] == pytest.approx(0.2, rel=0.4)
    assert launch_agreement(drifting(rng, 0.95, 0.2))["drift_p"] < 0.01
    single = launch_agreement([launch[:1] for launch in drifting(rng, 0.95, 0.2)])
    assert (single["p"], single["between"]) == (None, None)
    assert single["drift_p"] < 0.01
    assert launch_agreement(drifting(rng, 0.0, 0.0, 5)) is None


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
    assert paired_ratio([[1.0] * 9] * 3) == (1.0, None)
    estimate, interval = paired_ratio([[2.0]] * 6)
    assert (estimate, *interval) == pytest.approx((2.0, 2.0, 2.0))
    assert relative_half_width((0.98, 1.02)) == pytest.approx(0.0202, abs=1e-4)


def test_a_rare_calm_moment_does_not_stand_for_a_run() -> None:
    launch = [n // 4 for n in range(160)]
    rare = [n % 4 > 0 or n // 4 >= 6 for n in range(160)]  # one undisturbed round in six of forty launches
    assert counted_rounds(launch, rare) == list(range(160))
    quarter = [n % 4 > 0 or n // 4 >= 10 for n in range(160)]
    assert counted_rounds(launch, quarter) == list(range(0, 40, 4))


def test_disturbed_rounds_are_left_out_if_enough_remain() -> None:
    excluded = [False, True] * 6
    kept = undisturbed_ratios([0, 0, 1, 1] * 3, [2.0, 9.0] * 6, [1.0] * 12, excluded)
    assert kept == [[2.0] * 3, [2.0] * 3]
    few = undisturbed_ratios([0] * 8, [2.0, 9.0] * 4, [1.0] * 8, [False, True] * 4)
    assert few == [[2.0, 9.0] * 4]


def test_quantiles_are_given_only_where_samples_bear_them() -> None:
    assert (samples_needed(0.9), samples_needed(0.99)) == (29, 299)
    assert quantile(np.arange(298.0), 0.99) is None
    assert quantile(np.arange(299.0), 0.99) == pytest.approx(np.quantile(np.arange(299), 0.99))
