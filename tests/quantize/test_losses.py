"""What each layer loses: against the chain of proofs, against torch's own rounding, and with planted faults."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize.losses import LayerLoss, losses
from raq.quantize.ptq import prepare, simulated
from raq.report.losses import Tried, losses_in_words, why


class Net(nn.Module):
    """Two convolutions, the first read twice, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head((x + torch.relu(self.second(x))).mean((2, 3)))


def said_of(loss: LayerLoss) -> str:
    return why(loss.as_record(), Tried())  # type: ignore[arg-type]


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
    assert "beyond its range" in said_of(loss)


def test_outliers_are_seen_in_the_reach() -> None:
    images = torch.randn(64, 3, 8, 8)
    images[0, 0, 0, 0] = 200.0
    loss = compared(Net(), images)[0][0]
    assert loss.reach == pytest.approx(200 / float(images.std()), rel=0.05)
    assert "outliers" in said_of(loss)


def test_values_far_from_zero_are_no_outliers() -> None:
    """They take few of the integers, as a range holds 0."""
    loss = compared(Net(), 5 + 0.2 * torch.rand(16, 3, 8, 8))[0][0]
    assert loss.reach == pytest.approx(3**0.5, rel=0.1), "of a uniform distribution"
    assert loss.used_share == pytest.approx(0.2 / 5.2, rel=0.1)
    assert "outliers" not in said_of(loss)
    assert "fills 3.8% of its range" in said_of(loss)
    plain = compared(Net(), torch.randn(16, 3, 8, 8))[0][0]
    assert plain.used_share == pytest.approx(1, abs=0.01)


def record(**changes: Any) -> Any:
    known = {"sqnr_db": 9.0, "own_sqnr_db": 9.0, "weight_sqnr_db": 9.5, "input_low": 0.0, "input_high": 9.0}
    shares = {"saturated_share": 0.0, "reach": 99.0, "used_share": 1.0, "shift_share": 0.5}
    return {"name": "head", **known, **shares, **changes}


def methods(**changes: Any) -> Any:
    none = {"equalization": "none", "bias_correction": False, "learned_rounding": 0}
    return {**none, "equalized": [], "corrected": [], "learned": None, **changes}


def climbed(**kept: bool) -> Any:
    steps = {"all": "equalization: all", "folded": "equalization: folded", "bias": "bias_correction: true",
             "rounding": "learned_rounding: 200"}  # fmt: skip
    rows = [{"step": steps[key], "kept": value, "seconds": 1.0, "sqnr_db": 9.0, "drop": None, "drop_interval": None}
            for key, value in kept.items()]  # fmt: skip
    return {"effort": "best", "enough": 0.0, "samples": 9, "split": "validation", "rows": rows}


def test_what_was_done_or_tried_is_not_advised_again() -> None:
    untried = why(record(), Tried(methods(), None))
    assert ": ptq.equalization (all) spreads those of single channels" in untried
    assert ": ptq.bias_correction takes that away" in untried
    assert ": ptq.learned_rounding may round it better" in untried
    done = why(record(), Tried(methods(equalization="all", bias_correction=True, learned_rounding=200), None))
    assert all(f"(ptq.{key} was done)" in done for key in ("equalization", "bias_correction", "learned_rounding"))
    left = why(
        record(), Tried(methods(equalization="folded"), climbed(folded=True, all=False, bias=False, rounding=False))
    )
    assert left.count("tried ptq.") == 3
    assert left.count("left it out") == 3
    folded = why(record(), Tried(methods(equalization="folded"), climbed(folded=True)))
    assert ": ptq.equalization (all) spreads" in folded
    failed = climbed(rounding=False)
    failed["rows"][0]["error"] = "an operator has no gradient"
    assert "left it out" not in why(record(), Tried(methods(), failed))
    assert "equalization" not in why(record(), Tried(methods(), None, "arm"))


def test_older_records_tell_of_ranges_and_not_of_outliers() -> None:
    older = record()
    del older["used_share"]
    assert "outliers" not in why(older, Tried())


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
    assert losses_in_words([found["second"].as_record()], Tried()) is None  # type: ignore[list-item]
