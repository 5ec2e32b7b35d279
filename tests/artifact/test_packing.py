"""Weights of programs that take any batch size are packed when they are compiled: no call packs them anew."""

from pathlib import Path

import pytest
import torch
from networks import SATURATES
from torch import nn

from raq.artifact import inductor
from raq.artifact.executed import summary
from raq.artifact.isolated import IsolatedProcess
from raq.experiment.inputs import image_input
from raq.experiment.ptq import Calibration
from raq.quantize import ptq
from raq.quantize.convert import convert
from raq.quantize.export import export_network

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    """Convolutions as networks for mobile phones have them: strided, 1x1, depthwise, grouped; and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.Conv2d(32, 64, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


def reorders(program, path: Path) -> dict[str, int]:
    """By batch size, weights that a call packs anew; the logits are those of the program."""
    sizes = {parameter.numel() for parameter in network().parameters() if parameter.ndim > 1}
    with IsolatedProcess(path) as process:
        assert torch.allclose(process(IMAGES), program.module()(IMAGES), atol=0.05)
        return summary(process.trace((image_input((3, 32, 32)),), sizes), None).reorders_per_call


@pytest.mark.parametrize("quantized", [False, True])
def test_no_call_packs_weights_anew(tmp_path: Path, quantized: bool) -> None:
    program = export_network(network(), IMAGES[:2])
    if quantized:
        prepared = ptq.prepare(network(), IMAGES[:2], "x86", Calibration(observer="minmax"), reduce_range=SATURATES)
        prepared(IMAGES)
        program = convert(prepared, IMAGES[:2])
    inductor.lower(program, tmp_path / "a.pt2", {"input": [3, 32, 32]})
    assert reorders(program, tmp_path / "a.pt2") == {"1": 0, "8": 0}


def test_without_the_pass_every_convolution_is_packed_at_every_call(tmp_path: Path) -> None:
    """What the pass is for: when this fails, torch packs them itself."""
    program = export_network(network(), IMAGES[:2])
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "a.pt2"), inductor_configs={"freezing": True}
        )
    assert set(reorders(program, tmp_path / "a.pt2").values()) == {5}
