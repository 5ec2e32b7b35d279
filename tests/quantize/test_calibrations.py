"""Many calibrations of one network: nested sizes, and one program for all ranges, against the plain way."""

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import EXAMPLE, small

from raq.experiment import Calibration
from raq.quantize import artifact, ptq
from raq.quantize.calibrations import calibrate_nested, compile_for_all_ranges, prepared_from, ranges, with_ranges
from raq.quantize.capture import export_network


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
    compiled = artifact.load(tmp_path / "simulated.pt2")
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
