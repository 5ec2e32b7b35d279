"""Searching for a training: what is tried, what ends early, whatever the clock says."""

import numpy as np
import pytest

from raq.experiment.training import Qat
from raq.store.settings import QatSearch
from raq.sweep.qat import Search, importance, pareto_front, planned, stopped_after, suggestion

SPACE = {"lr": {"loguniform": [1e-4, 1e-1]}, "epochs": [1, 3]}
BASE = Qat(lr=0.001, epochs=3, momentum=0.9)


def test_a_random_search_extends_and_a_space_runs_out() -> None:
    few, many = planned("random", SPACE, BASE, 4, 7), planned("random", SPACE, BASE, 12, 7)
    assert few[0] == {"epochs": 3, "lr": 0.001}, "the training as written is the first"
    assert many[:4] == few
    assert len({c["lr"] for c in many}) == 12
    assert planned("random", SPACE, BASE, 12, 8) != many
    logs = np.log10([c["lr"] for c in planned("random", SPACE, BASE, 400, 0)])
    assert np.quantile(logs, [0.25, 0.5, 0.75]) == pytest.approx([-3.25, -2.5, -1.75], abs=0.2)
    assert len(planned("random", {"epochs": [1, 2]}, BASE, 16, 0)) == 3, "two values and the one as written"


def test_a_grid_has_every_combination_once() -> None:
    found = planned("grid", {"epochs": [1, 3], "momentum": [0.8, 0.9]}, BASE, None, 0)
    assert found[0] == {"epochs": 3, "momentum": 0.9}
    assert len(found) == 4
    assert len({str(c) for c in found}) == 4


def test_halving() -> None:
    """The first of a rung goes on, then the best third of those before; an equal one goes on."""
    curves = [[0.5, 0.6, 0.7, 0.7], [0.4], [0.6, 0.7, 0.7, 0.8], [0.55, 0.5, 0.6], [0.6, 0.1, 0.2]]
    assert stopped_after(curves, [4] * 5) == [None, 1, None, 3, 3]
    assert stopped_after([[], [0.4, 0.4]], [4, 4]) == [None, None], "the one before it is not there yet"
    assert stopped_after([[0.5], [0.4]], [1, 1]) == [None, None], "nothing is saved by ending at the last epoch"
    assert stopped_after([[0.5, 0.5], [0.1, 0.1, 0.1, 0.1]], [2, 4]) == [None, 1]


@pytest.mark.parametrize("kind", ["random", "optuna"])
@pytest.mark.parametrize("places", [1, 2, 4])
def test_the_table_is_the_same_however_trials_are_scheduled(kind: str, places: int) -> None:
    """Simulated: trials of random speed on some places; table, suggestions and early stops are those of one place."""

    def top1(config: dict, epoch: int) -> float:
        return 0.9 - 0.1 * abs(np.log10(config["lr"]) + 2.5) - 0.1 / (epoch + 1)

    def searched(places: int, seed: int) -> tuple:
        rng = np.random.default_rng(seed)
        asked = QatSearch(space=SPACE, search=kind, scheduler="asha", trials=18)
        search = Search(asked, BASE.model_copy(update={"epochs": 10}), 3)
        running: dict[int, int] = {}
        while True:
            while len(running) < places and (number := search.ask()) is not None:
                running[number] = 0
            if not running:
                break
            number = int(rng.choice(list(running)))
            goes_on = search.tell(number, running[number], top1(search.configs[number], running[number]))
            running[number] += 1
            if not goes_on or running[number] >= search.epochs[number]:
                del running[number]
        stops = search.stops()
        return search.configs, stops, search.scores(), [len(c[:s]) for c, s in zip(search.curves, stops, strict=True)]

    alone = searched(1, 0)
    assert any(stop is not None for stop in alone[1])
    assert searched(places, 1) == alone


def test_a_trial_that_is_tried_again_or_fails() -> None:
    search = Search(QatSearch(space=SPACE, search="random", scheduler="asha", trials=3), BASE, 0)
    first, second = search.ask(), search.ask()
    assert (first, second) == (0, 1)
    assert search.tell(0, 0, 0.5)
    assert search.tell(0, 0, 0.5), "reported again"
    assert search.curves[0] == [0.5]
    search.fail(0, "broken")
    assert search.scores()[0] is None
    assert search.ask() == 2
    assert search.ask() is None


def test_optuna_learns_and_tells_what_mattered() -> None:
    """With a score that follows lr alone, later suggestions lie nearer its best, and lr is what mattered."""
    space = {"lr": {"loguniform": [1e-4, 1e-1]}, "momentum": {"uniform": [0.0, 0.9]}}
    tried = planned("random", space, BASE, 30, 0)
    scores = [-abs(np.log10(c["lr"]) + 2) for c in tried]
    asked = [suggestion(space, tried, scores, 30 + n, 0) for n in range(10)]
    assert np.mean([abs(np.log10(c["lr"]) + 2) for c in asked]) < 0.5 * np.mean(np.abs(scores))
    assert asked[0] == suggestion(space, tried, scores, 30, 0)
    found = importance(space, tried, scores)
    assert found is not None
    assert found["lr"] > 0.8
    assert importance(space, tried[:3], scores[:3]) is None
    assert importance(space, tried, [0.5] * 30) is None


def test_the_front() -> None:
    assert pareto_front([0.9, 0.8, 0.9, None, 0.7], [3, 1, 3, 1, 2]) == [True, True, True, False, False]
