"""What trials come to: the grid, the statistics over seeds, the choice."""

import numpy as np
import pytest

from raq.experiment.schema import Calibration, Experiment, Ptq
from raq.experiment.sweep import OBSERVER, PER_CHANNEL, PERCENTILE, REDUCE_RANGE, SEED, SIZE
from raq.statistics import mean_drop
from raq.store.files import short_digest
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


def trials_of(top1: dict[tuple[str, int], float], seeds: int = 3, images: int = 4000) -> tuple[dict, dict]:
    rng = np.random.default_rng(1)
    draw = rng.random(images)
    trials, right = {}, {}
    for (observer, size), share in top1.items():
        for seed in range(seeds):
            config = {SIZE: size, OBSERVER: observer, PERCENTILE: None, **AS_EVER, SEED: seed}
            flipped = rng.random(images) < 0.002
            trials[short_digest(config)] = config
            right[short_digest(config)] = (draw < share) ^ flipped
    return trials, right


def test_the_smallest_that_is_shown_to_lose_little_is_chosen() -> None:
    found = {("minmax", 16): 0.70, ("minmax", 64): 0.90, ("minmax", 256): 0.90, ("histogram", 256): 0.85}
    trials, right = trials_of(found)
    rows = curve(trials, right, np.ones(4000, dtype=bool))
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
    worse, right = trials_of({("minmax", 16): 0.7, ("minmax", 256): 0.9})
    assert choose(curve(worse, right, np.ones(4000, dtype=bool)), 0, 0.3)["config"][SIZE] == 256


def test_few_images_do_not_make_a_smaller_calibration_good_enough() -> None:
    """Not detectably worse is no evidence: 16 images that may lose 5 points are not chosen over 256."""
    sizes = {("minmax", 16): 0.89, ("minmax", 256): 0.9}
    trials, right = trials_of(sizes, seeds=1, images=200)
    rows = curve(trials, right, np.ones(200, dtype=bool))
    low, high = rows[0].against_largest_interval
    assert low <= 0
    assert high > 0.3
    chosen = choose(rows, 0, 0.3)
    assert chosen["config"][SIZE] == 256
    assert "no smaller one is shown to lose at most 0.3 points" in chosen["why"]


def test_many_smaller_sizes_need_more_evidence() -> None:
    sizes = {("minmax", size): 0.9 for size in (16, 32, 64, 128, 256)}
    trials, right = trials_of(sizes)
    rows = curve(trials, right, np.ones(4000, dtype=bool))
    assert all(r.loses_at_most > r.against_largest_interval[1] for r in rows[:-1])
