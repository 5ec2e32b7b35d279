"""What each layer loses: against the chain of proofs, against torch's own rounding, and with planted faults."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize.losses import LayerLoss, losses
from raq.quantize.ptq import prepare, simulated
from raq.report.losses import losses_in_words, why


class Net(nn.Module):
    """Two convolutions, the first read twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head((x + torch.relu(self.second(x))).mean((2, 3)))


def compared(network: nn.Module, images: Tensor, calibrating: Tensor | None = None, **options: Any) -> tuple[
    list[LayerLoss], Tensor, Tensor
]:  # fmt: skip
    """The layers' losses, and the outputs of both networks."""
    network.eval()
    keys = {"reduce_range": False, **options}
    prepared = prepare(network, images[:2], "x86", Calibration.model_validate({"observer": "minmax"}), **keys)  # type: ignore[arg-type]
    with torch.no_grad():
        prepared(images if calibrating is None else calibrating)
        expected = network(images)
        with simulated(prepared) as as_integers:
            return losses(as_integers, (images,)), expected, as_integers(images)


def test_the_last_layer_is_the_network() -> None:
    """With all before it, its SQNR is that of the outputs: what the chain of proofs says of the step simulated."""
    found, expected, rounded = compared(Net(), torch.randn(16, 3, 8, 8))
    assert [loss.name for loss in found] == ["first", "second", "head"]
    assert found[-1].sqnr_db == pytest.approx(sqnr_db(expected.numpy(), rounded.numpy()), abs=1e-3)


def test_a_layer_alone_is_torchs_rounding() -> None:
    """Input to 8 bits by its range, weight to 8 bits by its channels' largest values, the rest in float."""
    network, images = Net(), torch.randn(16, 3, 8, 8)
    loss = compared(network, images)[0][0]
    low, high = images.min(), images.max()
    scale = (high - low) / 255
    data = torch.fake_quantize_per_tensor_affine(images, float(scale), int(-torch.round(low / scale)), 0, 255)
    weight = network.first.weight
    scales = weight.detach().abs().amax((1, 2, 3)) / 127
    rounded = torch.fake_quantize_per_channel_affine(weight, scales, torch.zeros(8, dtype=torch.int32), 0, -127, 127)
    with torch.no_grad():
        wanted, given = network.first(images), nn.functional.conv2d(data, rounded, network.first.bias, padding=1)
    assert loss.own_sqnr_db == pytest.approx(sqnr_db(wanted.numpy(), given.numpy()), abs=0.3)
    assert loss.weight_sqnr_db == pytest.approx(sqnr_db(weight.detach().numpy(), rounded.detach().numpy()), abs=0.1)
    assert (loss.input_low, loss.input_high) == (
        pytest.approx(float(low), abs=0.05),
        pytest.approx(float(high), abs=0.05),
    )
    assert loss.saturated_share == 0.0


def test_values_beyond_the_range_are_counted() -> None:
    images = torch.randn(16, 3, 8, 8)
    far = images.clone()
    far[0, 0, :4, :4] = 50.0  # 16 of the values, and calibration has seen none of them
    loss = compared(Net(), far, calibrating=images)[0][0]
    assert loss.saturated_share == pytest.approx(16 / far.numel(), rel=0.01)
    assert "beyond its range" in why(loss.as_record())  # type: ignore[arg-type]


def test_outliers_are_seen_in_the_reach() -> None:
    images = torch.randn(64, 3, 8, 8)
    images[0, 0, 0, 0] = 200.0
    loss = compared(Net(), images)[0][0]
    assert loss.reach == pytest.approx(200 / float(images.std()), rel=0.05)
    assert "outliers" in why(loss.as_record())  # type: ignore[arg-type]


def test_a_weight_with_one_large_channel_loses_most_per_tensor() -> None:
    network = Net()
    with torch.no_grad():
        network.second.weight[3] *= 300
    by_tensor, by_channel = (
        {loss.name: loss for loss in compared(network, torch.randn(16, 3, 8, 8), per_channel=kind)[0]}
        for kind in (False, True)
    )
    assert by_channel["second"].weight_sqnr_db is not None
    assert by_tensor["second"].weight_sqnr_db is not None
    weights = network.second.weight.detach()
    rest = [at for at in range(8) if at != 3]
    scale = float(weights.abs().max()) / 127
    lost = torch.fake_quantize_per_tensor_affine(weights, scale, 0, -127, 127)
    assert float(lost[rest].abs().max()) == 0.0, "the others are all rounded away"
    assert by_channel["second"].weight_sqnr_db > 35


def test_layers_left_in_float_lose_nothing_by_themselves() -> None:
    prepared = prepare(
        Net().eval(), torch.randn(2, 3, 8, 8), "x86", Calibration(), floats=["second"], reduce_range=False
    )
    images = torch.randn(8, 3, 8, 8)
    with torch.no_grad():
        prepared(images)
        with simulated(prepared) as as_integers:
            found = {loss.name: loss for loss in losses(as_integers, (images,))}
    assert found["second"].own_sqnr_db is None
    assert found["second"].weight_sqnr_db is None
    assert found["second"].input_low is None
    assert found["second"].sqnr_db is not None, "what comes before it is rounded"
    assert losses_in_words([found["second"].as_record()]) is None  # type: ignore[list-item]
