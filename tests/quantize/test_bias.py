"""Bias correction: channels keep their means, outputs come nearer, and nothing else of the network changes."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize.bias import correct_biases
from raq.quantize.convert import convert
from raq.quantize.losses import losses
from raq.quantize.ptq import prepare, simulated


class Net(nn.Module):
    """A convolution without a bias, one with batch norm, a depthwise one, a linear layer; activations are positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.second, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.head = nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(torch.relu(self.depthwise(x)).mean((2, 3)))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(64, 3, 8, 8)


def network(images: Tensor) -> Net:
    """With channels whose weights differ much, so that one scale a tensor rounds the small ones to one side."""
    net = Net()
    with torch.no_grad():
        for layer in (net.first, net.second, net.depthwise):
            layer.weight.mul_(torch.logspace(-2, 0, 8).view(-1, 1, 1, 1))
        net(images)  # batch norm's statistics
    return net.eval()


def prepared(net: nn.Module, images: Tensor, **options: Any) -> Any:
    keys = {"reduce_range": False, "per_channel": False, **options}
    found = prepare(net, images[:2], "x86", Calibration.model_validate({"observer": "minmax"}), **keys)  # type: ignore[arg-type]
    with torch.no_grad():
        found(images)
    return found


def test_means_of_channels_are_those_of_fp32(images: Tensor) -> None:
    net = network(images)
    graph = prepared(net, images)
    with simulated(graph) as as_integers, torch.no_grad():
        before = as_integers(images)
        corrected = correct_biases(as_integers, (images,))
        after, wanted = as_integers(images), net(images)
    assert len(corrected) == 4, "the first has got a bias"
    assert float((before - wanted).mean(0).abs().max()) > 3e-4, "there was something to correct"
    assert torch.allclose(after.mean(0), wanted.mean(0), atol=2e-5)
    near, far = (sqnr_db(wanted.numpy(), one.numpy()) for one in (after, before))
    assert near is not None and far is not None and near > far + 1


def test_the_network_keeps_its_own_biases(images: Tensor) -> None:
    net = network(images)
    kept = copy.deepcopy(net.state_dict())
    with simulated(prepared(net, images)) as as_integers:
        correct_biases(as_integers, (images,))
    assert all(torch.equal(kept[name], value) for name, value in net.state_dict().items())


def test_losses_are_still_against_fp32(images: Tensor) -> None:
    """The lane in float has the biases that the network had."""
    net = network(images)
    with simulated(prepared(net, images)) as as_integers, torch.no_grad():
        correct_biases(as_integers, (images,))
        found, rounded = losses(as_integers, (images,)), as_integers(images)
    assert found[-1].sqnr_db == pytest.approx(sqnr_db(net(images).detach().numpy(), rounded.numpy()), abs=1e-2)


def test_what_is_converted_is_what_was_corrected(images: Tensor) -> None:
    graph = prepared(network(images), images)
    with simulated(graph) as as_integers, torch.no_grad():
        correct_biases(as_integers, (images,))
        wanted = as_integers(images)
    program = convert(graph, images[:2])
    with torch.no_grad():
        distance = sqnr_db(wanted.numpy(), program.module()(images).numpy())
    assert distance is None or distance > 60


def test_a_bias_that_two_layers_read_is_left(images: Tensor) -> None:
    net = network(images)
    net.depthwise.bias = net.second.bias
    with simulated(prepared(net, images)) as as_integers:
        corrected = correct_biases(as_integers, (images,))
    assert len(corrected) == 2, "the first and the last"


def test_layers_in_float_are_left(images: Tensor) -> None:
    graph = prepare(network(images), images[:2], "x86", Calibration(), floats=["depthwise"], reduce_range=False)
    with torch.no_grad():
        graph(images)
    with simulated(graph) as as_integers:
        assert len(correct_biases(as_integers, (images,))) == 3


class Product(nn.Module):
    """A matrix product beside a linear layer, of the same pooled channels."""

    def __init__(self, *, adds: bool) -> None:
        super().__init__()
        self.adds = adds
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.matrix, self.added = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.second(torch.relu(self.first(x))), 6).flatten(1)
        other = torch.addmm(self.added, x, self.matrix) if self.adds else torch.mm(x, self.matrix)
        return self.head(x) + other


@pytest.mark.parametrize("adds", [False, True])
def test_a_matrix_product_has_no_bias_to_correct(adds: bool, images: Tensor) -> None:
    graph = prepared(Product(adds=adds).eval(), images, per_channel=True)
    with simulated(graph) as as_integers, torch.no_grad():
        before = as_integers(images)
        corrected = correct_biases(as_integers, (images,))
        after = as_integers(images)
        lost = losses(as_integers, (images,))
    assert len(corrected) == 3
    assert not any("mm" in name for name in corrected)
    assert after.shape == before.shape
    assert len(lost) == 4
    weights = [loss.weight_sqnr_db for loss in lost]
    assert [weight is None for weight in weights] == [False, False, True, False], "the product stays in float"
