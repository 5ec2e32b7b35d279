"""What trials come to: the grid, the statistics over seeds, the choice."""

import numpy as np
import pytest

from raq.experiment.metric import TOP1, Metric
from raq.experiment.ptq import Calibration, Ptq
from raq.experiment.schema import Experiment
from raq.experiment.sweep import (
    BIAS_CORRECTION,
    EQUALIZATION,
    LEARNED_ROUNDING,
    OBSERVER,
    PER_CHANNEL,
    PERCENTILE,
    REDUCE_RANGE,
    SEED,
    SIZE,
)  # fmt: skip
from raq.statistics.proportions import mean_drop
from raq.store.files import short_digest
from raq.sweep.answers import Answers
from raq.sweep.ptq import choose, curve, grid

PTQ = Ptq(calibration=Calibration(size=256, observer="histogram", percentile=99.9))

AS_EVER = {PER_CHANNEL: True, REDUCE_RANGE: True}


def swept(**given: object) -> list[dict]:
    experiment = Experiment.model_validate({"name": "x", "sweep": {"ptq": given}})
    assert experiment.sweep is not None
    assert experiment.sweep.ptq is not None
    return grid(PTQ, experiment.sweep.ptq, reduce_range=True)


def test_the_grid() -> None:
    """The largest size first, seeds fastest; percentiles multiply their own observer only; nested keys are the same."""
    both = {"observer": ["percentile", "minmax"], "percentile": [99.0, 99.9]}
    found = swept(**{"calibration.size": [16, 64], "seed": [3, 5], "calibration": both})
    assert [(c[SIZE], c[SEED]) for c in found[:4]] == [(64, 3), (64, 5), (16, 3), (16, 5)]
    assert len(found) == 4 * 3
    assert {(c[OBSERVER], c[PERCENTILE]) for c in found} == {
        ("percentile", 99.0),
        ("percentile", 99.9),
        ("minmax", None),
    }
    alone = {SIZE: 256, OBSERVER: "histogram", PERCENTILE: None, PER_CHANNEL: True, REDUCE_RANGE: True, SEED: 1}
    assert swept(seed=[1]) == [alone]
    both = swept(seed=[1], per_channel=[True, False], reduce_range=[False])
    assert [(c[PER_CHANNEL], c[REDUCE_RANGE]) for c in both] == [(True, False), (False, False)]


@pytest.mark.parametrize("drop", [0.0, 0.02])
def test_the_interval_of_a_mean_drop_covers(drop: float) -> None:
    """Simulated: images of different difficulty, answers that differ by `drop` on average; 300 data sets."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        easy = rng.beta(8, 1, 800)
        first = rng.random((3, 800)) < easy
        second = rng.random((3, 800)) < np.clip(easy - drop, 0, 1)
        _, (low, high) = mean_drop(first, second)
        true = 100 * float((easy - np.clip(easy - drop, 0, 1)).mean())
        covered += low <= true <= high
    assert 0.91 <= covered / 300 <= 0.99


def of_scores(values: np.ndarray, metric: Metric = TOP1, samples: int | None = None) -> Answers:
    return Answers(metric, values, samples is not None, samples or len(values))


def trials_of(top1: dict[tuple[str, int], float], seeds: int = 3, images: int = 4000) -> tuple[dict, dict]:
    rng = np.random.default_rng(1)
    draw = rng.random(images)
    trials, answers = {}, {}
    for (observer, size), share in top1.items():
        for seed in range(seeds):
            config = {SIZE: size, OBSERVER: observer, PERCENTILE: None, **AS_EVER, SEED: seed}
            flipped = rng.random(images) < 0.002
            trials[short_digest(config)] = config
            answers[short_digest(config)] = of_scores(((draw < share) ^ flipped).astype(float))
    return trials, answers


def test_the_smallest_that_is_shown_to_lose_little_is_chosen() -> None:
    found = {("minmax", 16): 0.70, ("minmax", 64): 0.90, ("minmax", 256): 0.90, ("histogram", 256): 0.85}
    trials, answers = trials_of(found)
    rows = curve(trials, answers, of_scores(np.ones(4000)))
    assert [(r.observer, r.size) for r in rows] == [
        ("minmax", 16), ("minmax", 64), ("minmax", 256), ("histogram", 256),
    ]  # fmt: skip
    assert rows[0].against_largest == pytest.approx(20, abs=1)
    assert rows[0].against_largest_interval[0] > 15
    chosen = choose(rows, seed=2, margin=0.3)
    assert chosen["config"] == {SIZE: 64, OBSERVER: "minmax", PERCENTILE: None, **AS_EVER, SEED: 2}
    assert "the smallest that is shown to lose at most 0.3 points against 256 images" in chosen["why"]
    assert choose(rows, 9, 0.3)["config"][SEED] == 0, "a seed that was not tried is not taken"
    assert "512 images did not finish" in choose(rows, 0, 0.3, asked=512)["why"]
    worse, answers = trials_of({("minmax", 16): 0.7, ("minmax", 256): 0.9})
    assert choose(curve(worse, answers, of_scores(np.ones(4000))), 0, 0.3)["config"][SIZE] == 256


def test_what_does_least_is_chosen_where_methods_are_alike() -> None:
    """Whatever the order, and though one of 4,000 images more is right by what costs time at every call."""
    rng = np.random.default_rng(0)
    right = (rng.random(4000) < 0.9).astype(float)
    one_more = right.copy()
    one_more[np.flatnonzero(right == 0)[:1]] = 1
    worse = right.copy()
    worse[np.flatnonzero(right)[:80]] = 0
    trials, answers = {}, {}
    for extent, steps, found in (
        ("all", 0, one_more),
        ("folded", 200, right),
        ("folded", 0, right),
        ("none", 0, worse),
    ):
        beside = {EQUALIZATION: extent, BIAS_CORRECTION: False, LEARNED_ROUNDING: steps}
        config = {SIZE: 64, OBSERVER: "minmax", PERCENTILE: None, **AS_EVER, **beside, SEED: 0}
        trials[short_digest(config)], answers[short_digest(config)] = config, of_scores(found)
    rows = curve(trials, answers, of_scores(right))
    assert [row.equalization for row in rows] == ["all", "folded", "folded", "none"]
    chosen = choose(rows, 0, margin=0.3)
    assert (chosen["config"][EQUALIZATION], chosen["config"][LEARNED_ROUNDING]) == ("folded", 0)
    assert "equalization: folded, bias_correction: false, learned_rounding: 0" in chosen["why"]
    assert "a dearer method loses 0.02" in chosen["why"]
    assert choose(rows, 0, margin=0.0)["config"][EQUALIZATION] == "all"
    assert choose(rows, 0, margin=5.0)["config"][EQUALIZATION] == "none"


def test_few_images_do_not_make_a_smaller_calibration_good_enough() -> None:
    """Not detectably worse is no evidence: 16 images that may lose 5 points are not chosen over 256."""
    sizes = {("minmax", 16): 0.89, ("minmax", 256): 0.9}
    trials, answers = trials_of(sizes, seeds=1, images=200)
    rows = curve(trials, answers, of_scores(np.ones(200)))
    low, high = rows[0].against_largest_interval
    assert low <= 0
    assert high > 0.3
    chosen = choose(rows, 0, 0.3)
    assert chosen["config"][SIZE] == 256
    assert "no smaller one is shown to lose at most 0.3 points" in chosen["why"]


def test_many_smaller_sizes_need_more_evidence() -> None:
    sizes = {("minmax", size): 0.9 for size in (16, 32, 64, 128, 256)}
    trials, answers = trials_of(sizes)
    rows = curve(trials, answers, of_scores(np.ones(4000)))
    assert all(r.loses_at_most > r.against_largest_interval[1] for r in rows[:-1])


def test_calibrations_by_an_error_of_which_less_is_better() -> None:
    """The one whose error is least is best; what a smaller one loses is in the metric's unit, paired by sample."""
    mse, rng = Metric.model_validate("mse"), np.random.default_rng(0)
    errors = rng.gamma(2.0, 0.05, 2000)
    trials, answers = {}, {}
    for size, factor in ((16, 1.5), (64, 1.002), (256, 1.0)):
        config = {SIZE: size, OBSERVER: "minmax", PERCENTILE: None, **AS_EVER, SEED: 0}
        trials[short_digest(config)] = config
        answers[short_digest(config)] = of_scores(factor * errors, mse)
    rows = curve(trials, answers, of_scores(0.99 * errors, mse))
    assert [row.mean_value for row in rows] == pytest.approx(
        [1.5 * errors.mean(), 1.002 * errors.mean(), errors.mean()]
    )
    assert [row.drop for row in rows] == pytest.approx([f * errors.mean() for f in (0.51, 0.012, 0.01)])
    assert rows[0].against_largest == pytest.approx(0.5 * errors.mean())
    low, high = rows[0].against_largest_interval
    half = 1.96 * 0.5 * errors.std() / np.sqrt(2000)
    assert (low, high) == pytest.approx((0.5 * errors.mean() - half, 0.5 * errors.mean() + half), rel=0.02)
    chosen = choose(rows, 0, 0.001, metric=mse)
    assert chosen["config"][SIZE] == 64
    assert "lose at most 0.001 against 256 images (0.000201, at most 0.000208)" in chosen["why"]
    assert choose(rows, 0, 0.0001, metric=mse)["config"][SIZE] == 256


def test_calibrations_by_a_metric_of_the_whole_set() -> None:
    """The drop is that of the sets themselves; its interval comes from the resampled ones, pair by pair."""
    iou, rng = Metric.model_validate("mean_iou"), np.random.default_rng(0)
    drawn = rng.normal(0, 0.02, 1000)
    trials, answers = {}, {}
    for size, value in ((16, 0.70), (256, 0.75)):
        config = {SIZE: size, OBSERVER: "minmax", PERCENTILE: None, **AS_EVER, SEED: 0}
        trials[short_digest(config)] = config
        answers[short_digest(config)] = of_scores(value + np.array([0.0, *drawn]), iou, 500)
    rows = curve(trials, answers, of_scores(0.8 + np.array([0.0, *drawn]), iou, 500))
    assert [row.drop for row in rows] == pytest.approx([10, 5])
    assert rows[0].against_largest == pytest.approx(5)
    assert rows[0].against_largest_interval == pytest.approx((5, 5)), "both have the same luck in every set"
