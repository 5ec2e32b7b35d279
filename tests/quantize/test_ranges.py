"""Many calibrations of one network: nested sizes, and one program for all ranges, against the plain way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import EXAMPLE, small
from torch import nn

from raq.artifact import inductor
from raq.artifact.parametric import compile_for_all_ranges, ranges_as_inputs, with_ranges
from raq.experiment.ptq import Calibration
from raq.quantize import ptq
from raq.quantize.export import export_network
from raq.quantize.ranges import calibrate_nested, prepared_from, ranges, switchable


@pytest.fixture(scope="module")
def program():
    torch.manual_seed(0)
    return export_network(small(), EXAMPLE)


@pytest.mark.parametrize("observer", ["minmax", "moving-average", "histogram"])
def test_nested_sizes_are_what_each_size_gives_alone(program, digits, observer: str) -> None:
    settings = Calibration(observer=observer, batch_size=32)
    kept = {}
    prepared = prepared_from(program, "x86", settings, reduce_range=False)
    calibrate_nested(prepared, digits, settings, 5, [32, 80, 192], lambda n, r: kept.update({n: r}))
    for size in (32, 80, 192):
        alone = prepared_from(program, "x86", settings, reduce_range=False)
        ptq.calibrate(alone, digits, settings.model_copy(update={"size": size}), 5)
        for nested, plain in zip(kept[size], ranges(alone), strict=True):
            np.testing.assert_array_equal(nested, plain)
    assert not np.array_equal(kept[32][0], kept[192][0])


def test_each_image_is_read_once(program, digits) -> None:
    """All of them together are the largest size, and the part of a batch in which a smaller one ends."""
    settings = Calibration(observer="minmax", batch_size=32)
    kept: list[int] = []
    for sizes, read in (([32, 64], 64), ([16, 40, 48], 48 + 16 + 8)):
        prepared = prepared_from(program, "x86", settings, reduce_range=False)
        assert calibrate_nested(prepared, digits, settings, 0, sizes, lambda n, r: kept.append(n)) == read
    assert kept == [32, 64, 16, 40, 48]


def test_one_program_stands_for_all_ranges(program, digits, tmp_path: Path) -> None:
    settings = Calibration(observer="minmax")
    prepared = prepared_from(program, "x86", settings, reduce_range=True)
    compile_for_all_ranges(prepared, EXAMPLE, tmp_path / "simulated.pt2")
    compiled = inductor.load(tmp_path / "simulated.pt2")
    images = torch.randn(5, 3, 32, 32)
    for size in (4, 200):
        own = prepared_from(program, "x86", settings, reduce_range=True)
        ptq.calibrate(own, digits, settings.model_copy(update={"size": size}), 0)
        found = ranges(own)
        with ptq.simulated(own) as as_integers, torch.inference_mode():
            expected = as_integers(images)
        with torch.inference_mode():
            given = with_ranges(compiled, found)(images)
        # a value on the edge between two integers may be rounded to the other one
        torch.testing.assert_close(given, expected, atol=0.02 * float(expected.abs().max()), rtol=0)
        assert float((given - expected).abs().median()) < 1e-5


class Residual(nn.Module):
    """An addition, a gate, pooling: what a quantizer rounds besides layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 10)
        self.pool, self.average = nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        kept = self.pool(self.first(images).relu())
        summed = self.second(kept) + kept
        return self.head(self.average(summed * torch.sigmoid(self.gate(self.average(summed)))).flatten(1))


def test_what_is_switched_off_computes_in_float(digits) -> None:
    """All off: FP32 itself. One off: as the graph whose quantizer left that one out, be it a layer or no layer."""
    torch.manual_seed(0)
    network, settings = Residual().eval(), Calibration(observer="minmax", size=64)
    program = export_network(network, EXAMPLE)
    prepared = prepared_from(program, "x86", settings, reduce_range=False)
    ptq.calibrate(prepared, digits, settings, 0)
    names, images = switchable(prepared), torch.randn(4, 3, 32, 32)
    assert {"first", "second", "gate", "head"} < set(names)
    others = [name for name in names if name not in ("first", "second", "gate", "head")]
    assert any(name.startswith("add") for name in others)
    switched = ranges_as_inputs(prepared, names)
    with torch.inference_mode():
        fp32 = network(images)
        assert switching(switched, prepared, [False] * len(names))(images).equal(fp32)
        for name in names:
            own = ptq.prepare(network, EXAMPLE, "x86", settings, [name], reduce_range=False)
            ptq.calibrate(own, digits, settings, 0)
            with ptq.simulated(own) as as_integers:
                expected = as_integers(images)
            given = switching(switched, prepared, [other != name for other in names])(images)
            torch.testing.assert_close(given, expected, rtol=0, atol=0.02 * float(fp32.abs().max()))
            assert not given.equal(fp32)


def switching(switched, prepared, on: list[bool]):
    return with_ranges(switched, ranges(prepared), on)
