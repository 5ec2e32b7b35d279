"""Learned rounding: outputs come nearer, weights are integers, and the network keeps its own."""

import copy
import math
from itertools import repeat

import pytest
import torch
from torch import Tensor, fx, nn

from raq.errors import StageError
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize.convert import convert
from raq.quantize.learned_rounding import learn_rounding
from raq.quantize.losses import losses
from raq.quantize.ptq import FixedFakeQuantize, prepare, simulated


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()


def calibrated(net: nn.Module, images: Tensor) -> fx.GraphModule:
    """The graph with the ranges of these images; two of their shape are its example."""
    example = torch.zeros(2, *images.shape[1:])
    prepared = prepare(net, example, "x86", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        prepared(images)
    return prepared


def test_outputs_come_nearer_and_convert_comes_to_the_same() -> None:
    net, images, others = network(), torch.randn(64, 3, 8, 8), torch.randn(256, 3, 8, 8)
    own, wanted = copy.deepcopy(net.state_dict()), net(others).detach()
    prepared = calibrated(net, images[:8])
    with simulated(prepared) as as_integers:
        with torch.no_grad():
            before = as_integers(others)
        exact = [loss.name for loss in losses(as_integers, (images,))]
        found = learn_rounding(as_integers, net, repeat((images,)), 60)
        with torch.no_grad():
            after = as_integers(others)
        lost = losses(as_integers, (images,))
    with simulated(prepared) as again:
        assert torch.equal(again(others), after), "observers say what was learned"
    assert found.steps == 60
    assert found.error_after < 0.7 * found.error_before
    assert 0 < found.moved_share < 0.5
    gained = (sqnr_db(wanted.numpy(), after.numpy()) or 0) - (sqnr_db(wanted.numpy(), before.numpy()) or 0)
    assert gained > 1, "on other images than those that it was learned on"
    assert [loss.name for loss in lost] == exact
    assert all(loss.weight_sqnr_db is not None for loss in lost), "compared with the weights that were exported"
    program = convert(prepared, images[:2]).module()
    assert torch.allclose(program(others), after, atol=1e-3)
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())


def test_weights_are_the_integers_of_their_scales() -> None:
    net, images = network(), torch.randn(16, 3, 8, 8)
    prepared = calibrated(net, images)
    with simulated(prepared) as as_integers:
        learn_rounding(as_integers, net, repeat((images,)), 5)
        modules = dict(as_integers.named_modules(remove_duplicate=False))
        seen = 0
        for node in as_integers.graph.nodes:
            module = modules.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, FixedFakeQuantize) and node.args[0].op == "get_attr":
                weight: Tensor = as_integers.get_parameter(str(node.args[0].target))
                assert torch.allclose(module(weight), weight, atol=1e-6)
                seen += 1
    assert seen == 3


class Tied(nn.Module):
    """A convolution that is called twice, and a map that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.map = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Parameter(torch.randn(1, 8, 6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)) + self.map
        return self.again(torch.relu(self.again(x))).mean((2, 3))


def test_layers_that_share_a_weight_round_it_alike() -> None:
    net, images = Tied().eval(), torch.randn(16, 3, 8, 8)
    prepared = calibrated(net, images)
    with simulated(prepared) as as_integers:
        found = learn_rounding(as_integers, net, repeat((images,)), 20)
        after = as_integers(images)
    assert found.error_after < found.error_before
    assert torch.equal(net.map, next(t for name, t in as_integers.named_parameters() if "map" in name))
    assert torch.allclose(convert(prepared, images[:2]).module()(images), after, atol=1e-3)


def test_one_output_of_one_sample_is_no_nan() -> None:
    net, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 1)).eval(), torch.randn(1, 3, 2, 2)
    prepared = calibrated(net, images)
    with simulated(prepared) as as_integers:
        found = learn_rounding(as_integers, net, repeat((images,)), 3)
    assert math.isfinite(found.error_after)


def test_outputs_that_are_not_finite_are_said() -> None:
    net, images = network(), torch.randn(16, 3, 8, 8)
    prepared = calibrated(net, images)
    with simulated(prepared) as as_integers, pytest.raises(StageError, match="is nan in step 1"):
        learn_rounding(as_integers, lambda given: net(given) * math.nan, repeat((images,)), 3)


def test_the_same_seed_learns_the_same() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(1)
        net, images = network(), torch.randn(16, 3, 8, 8)
        prepared = calibrated(net, images)
        with simulated(prepared) as as_integers:
            learn_rounding(as_integers, net, repeat((images,)), 5)
            states.append({name: tensor.clone() for name, tensor in as_integers.named_parameters()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def zero_points(graph: fx.GraphModule) -> list[int]:
    found = [one for one in graph.modules() if isinstance(one, FixedFakeQuantize) and one.axis < 0]
    return [int(one.zero_point) for one in found]


def test_a_range_that_was_led_astray_comes_back() -> None:
    """What SiLU gives below zero is a few integers wide: once it was lost, it had no gradient to come back by."""
    layers = [nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 5)]
    net, astray = nn.Sequential(*layers).eval(), nn.Sequential(layers[0], nn.ReLU(), *layers[2:]).eval()
    images, asked = torch.randn(64, 3, 8, 8), iter([astray] * 30 + [net] * 70)
    prepared = calibrated(net, images * 12)

    def meant(given: Tensor) -> Tensor:
        return next(asked)(given)  # type: ignore[no-any-return]

    with simulated(prepared) as as_integers:
        before = zero_points(as_integers)
        learn_rounding(as_integers, meant, repeat((images,)), 100)
        after = zero_points(as_integers)
    assert 0 < before[1] < 5, "narrow"
    assert after[1] > 0


def test_symmetric_ranges_stay_symmetric() -> None:
    net, images = network(), torch.randn(16, 3, 8, 8)
    prepared = prepare(net, torch.zeros(2, 3, 8, 8), "cuda", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        prepared(images)
    with simulated(prepared) as as_integers:
        learn_rounding(as_integers, net, repeat((images * 1.5,)), 30)
        assert set(zero_points(as_integers)) == {0}


def test_a_weight_that_is_computed_is_rounded_to_the_nearest() -> None:
    """Of weight norm, the integers are of a product; all else learns."""
    net = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5)
    ).eval()
    images = torch.randn(32, 3, 8, 8)
    prepared = calibrated(net, images)
    with simulated(prepared) as as_integers:
        computed = [one for one in as_integers.modules() if isinstance(one, FixedFakeQuantize) and one.axis >= 0]
        scales = [one.scale.clone() for one in computed]
        found = learn_rounding(as_integers, net, repeat((images,)), 20)
        after = as_integers(images)
    assert len(computed) == 2
    assert all(torch.equal(one.scale, was) for one, was in zip(computed, scales, strict=True))
    assert found.moved_share > 0
    assert torch.allclose(convert(prepared, images[:2]).module()(images), after, atol=1e-3)
