"""The root finder against SciPy's."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr, stdtr

from raq.statistics.roots import root

FUNCTIONS = {
    "a quantile of Student's t": (lambda x: float(stdtr(3, x)) - 0.975, -1e4, 1e4),
    "a quantile far out": (lambda x: float(ndtr(x)) - 1e-9, -40.0, 40.0),
    "falling": (lambda x: math.exp(-x) - 0.3, -5.0, 20.0),
    "a step": (lambda x: -1.0 if x < 0.123 else 1.0, -1.0, 1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_root(name: str) -> None:
    function, low, high = FUNCTIONS[name]
    assert root(function, low, high) == pytest.approx(brentq(function, low, high, xtol=1e-14), rel=1e-11)


def test_flat_at_its_root() -> None:
    assert root(lambda x: (x - 2) ** 3, -7.0, 31.0) == pytest.approx(2.0, abs=1e-4)


def test_infinite_at_an_end() -> None:
    assert root(lambda x: math.inf if x == 0 else 1 / x - 4, 0.0, 3.0) == pytest.approx(0.25)


def test_random_monotone_functions() -> None:
    chance = np.random.default_rng(0)
    for _ in range(200):
        centre, scale = chance.normal(0, 10), 10 ** chance.uniform(-6, 3)
        found = root(lambda x, c=centre, s=scale: math.tanh((x - c) / s), centre - 50 * scale, centre + 77 * scale)
        assert found == pytest.approx(centre, abs=1e-9 * scale + 1e-13)
