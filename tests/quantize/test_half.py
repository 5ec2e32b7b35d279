"""Half precision: the same network as torch's own in 16 bits, in kernels of 16 bits."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from raq.artifact import inductor
from raq.artifact.account import what_ran
from raq.artifact.isolated import IsolatedProcess
from raq.artifact.runtimes import RUNTIMES, read
from raq.artifact.sizes import ledger
from raq.environment import machine
from raq.errors import UserError
from raq.experiment.inputs import image_input
from raq.model.parity import sqnr_db
from raq.plan.facts import HALF_FEATURES
from raq.quantize.arithmetic import network_macs
from raq.quantize.convert import tensor_bytes
from raq.quantize.half import half_program

EXAMPLE = torch.zeros(2, 3, 16, 16)


def network() -> nn.Module:
    """Two convolutions with batch norms that have seen something, and a linear layer."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(3):
            layers(torch.randn(8, 3, 16, 16) * 2 + 1)
    return layers.eval()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_it_is_the_folded_network_rounded_once(dtype: str) -> None:
    """Bit for bit what torch computes with its own folding, rounded; half the weights; float32 in and out."""
    own, images = network(), torch.randn(5, 3, 16, 16)
    program = half_program(own, EXAMPLE, dtype)
    folded: list[nn.Module] = []
    for layer in copy.deepcopy(own):  # type: ignore[attr-defined]
        if isinstance(layer, nn.BatchNorm2d):
            folded[-1] = torch.nn.utils.fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(layer)
    expected = nn.Sequential(*folded).to(getattr(torch, dtype))
    with torch.no_grad():
        found = program.module()(images)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected(images.to(getattr(torch, dtype))).float())
        quality = sqnr_db(own(images).numpy(), found.numpy())
    assert quality is not None
    assert quality > 30
    assert tensor_bytes(program) == sum(2 * parameter.numel() for parameter in nn.Sequential(*folded).parameters())


class Mixed(nn.Module):
    """A network that adds float32 of its own, whatever its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        flat: Tensor = images.flatten(1)
        return torch.as_tensor(self.linear(flat + torch.ones(1, 1, dtype=torch.float32)))


def test_a_network_that_mixes_in_float32_is_refused() -> None:
    with pytest.raises(UserError, match=r"the model cannot compute in bfloat16: .*dtype"):
        half_program(Mixed().eval(), EXAMPLE, "bfloat16")


@pytest.mark.skipif(
    not set(HALF_FEATURES["bfloat16"]) & set(machine().features), reason="this CPU does not compute in bfloat16"
)
def test_its_artifact_runs_in_kernels_of_16_bits(tmp_path: Path) -> None:
    """Of all multiply-accumulates; no weight is repacked, and none is kept as float32."""
    own, path = network(), tmp_path / "artifact.pt2"
    inductor.lower(half_program(own, EXAMPLE, "bfloat16"), path, {"input": [3, 16, 16], "kind": "half"})
    sizes = ledger(read(path))
    large = [entry for entry in sizes.constants if len(entry.shape) > 1]
    assert {entry.dtype for entry in large} == {"bfloat16"}
    with IsolatedProcess(path, "cpu", 1, RUNTIMES["inductor"]) as process:
        shapes = [entry.shape for entry in sizes.constants]
        found = what_ran(process, (image_input((3, 16, 16)),), shapes, network_macs(own, EXAMPLE).total, [])
    assert found is not None
    assert (found.executed_half_mac_share, found.executed_int8_mac_share) == (1.0, 0.0)
    assert set(found.reorders_per_call.values()) == {0}
