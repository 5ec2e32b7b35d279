"""Equalization: the function stays what it was, small channels get their integers, and what is read twice is left."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from raq.experiment.fields import Extent
from raq.experiment.ptq import Calibration
from raq.model.parity import sqnr_db
from raq.quantize.convert import convert
from raq.quantize.equalization import Equalized, equalize
from raq.quantize.folding import folded_graph
from raq.quantize.ptq import prepare_graph, simulated

SPREAD = torch.logspace(-2, 1, 8)  # of channels: a thousandfold


class Chain(nn.Module):
    """ReLU between convolutions, one of them grouped, and pooling before a linear layer: all of it can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.grouped, self.last = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.norm(self.first(x))), 2)
        return self.last(torch.relu(self.grouped(x))).mean((2, 3))


class Gated(nn.Module):
    """SiLU, which no factor passes, before a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.depthwise(F.silu(self.first(x)))


class Normed(nn.Module):
    """A layer norm that two linear layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.query, self.key = nn.LayerNorm(8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.flatten(2).transpose(1, 2)[..., :8])
        return self.query(x) * self.key(x)


class ReadTwice(Chain):
    """What the second convolution reads, the output reads too: nothing before it may change."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.grouped(x) + x


def spread(net: nn.Module, images: Tensor) -> nn.Module:
    """Channels made unlike, and weights behind them so that all count alike; batch norm's statistics settled."""
    with torch.no_grad():
        if isinstance(net, Normed):
            net.norm.weight.copy_(SPREAD)
            for layer in (net.query, net.key):
                layer.weight.div_(SPREAD)
        elif isinstance(net, Gated):
            net.first.weight.mul_(SPREAD.view(-1, 1, 1, 1))
            net.depthwise.weight.div_(SPREAD.view(-1, 1, 1, 1))
        elif isinstance(net, Chain):
            net(images)
            net.norm.weight.copy_(SPREAD)
            net.norm.bias.copy_(0.1 * SPREAD)
            net.grouped.weight.view(2, 4, 4, 9).div_(SPREAD.view(2, 1, 4, 1))
    return net.eval()


def equalized(net: nn.Module, images: Tensor, extent: Extent) -> tuple[fx.GraphModule, list[Equalized]]:
    graph = folded_graph(net, images[:2])
    return graph, equalize(graph, (images,), extent)


def distance(graph: fx.GraphModule, images: Tensor, wanted: Tensor, last: int = 8) -> float:
    """SQNR of the graph in int8, of the channels before `last`, and that convert comes to the same."""
    prepared = prepare_graph(graph, "x86", Calibration(observer="minmax"), reduce_range=False)
    with torch.no_grad():
        prepared(images)
        with simulated(prepared) as as_integers:
            found = as_integers(images)
        program = convert(prepared, images[:2]).module()
        assert torch.allclose(program(images), found, atol=1e-3 * float(found.abs().max()))
    return sqnr_db(wanted[:, :last].numpy(), found[:, :last].numpy()) or 300.0


@pytest.fixture
def images() -> Tensor:
    return torch.randn(32, 3, 8, 8)


@pytest.mark.parametrize(
    ("kind", "extent", "into", "gain"),
    [
        (Chain, "folded", ["first"], 8.0), (Normed, "folded", ["norm"], 8.0), (Gated, "folded", [], 0.0),
        (Gated, "all", [None], 8.0), (ReadTwice, "folded", [], 0.0), (ReadTwice, "all", [None], 0.0),
    ],
)  # fmt: skip
def test_the_function_stays_and_int8_comes_nearer(
    kind: type[nn.Module], extent: Extent, into: list[str | None], gain: float, images: Tensor
) -> None:
    given = torch.randn(32, 8, 4, 2) if kind is Normed else images
    net = spread(kind(), given)
    own = copy.deepcopy(net.state_dict())
    wanted = net(given).detach()
    graph, found = equalized(net, given, extent)
    assert [one.into for one in found][: len(into)] == into
    assert bool(found) == bool(into)
    assert torch.allclose(graph(given), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    plain = distance(folded_graph(net, given[:2]), given, wanted)
    assert distance(graph, given, wanted) >= plain + gain
    for one in found:
        assert one.own_sqnr_db[1] > one.own_sqnr_db[0]
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items()), "the network keeps its own"


def test_depthwise_factors_are_the_channels_own_ranges(images: Tensor) -> None:
    """alpha 1: each channel's range is then the same, to the last of them."""
    net = spread(Gated(), images)
    graph, (found,) = equalized(net, images, "all")
    (factor,) = (getattr(graph, str(node.target)) for node in graph.graph.nodes if "equalizing" in str(node.target))
    ranges = (F.silu(net.first(images)) * factor).abs().amax((0, 2, 3))  # type: ignore[operator]
    assert found.alpha == 1
    assert float(ranges.max() / ranges.min()) < 1.01


def test_layers_read_one_activation_get_one_factor(images: Tensor) -> None:
    net = spread(Normed(), torch.randn(32, 8, 4, 2))
    _, (found,) = equalized(net, torch.randn(32, 8, 4, 2), "folded")
    assert found.names == ("query", "key")


class Mixing(nn.Module):
    """A layer norm over features, read by a convolution over tokens; as many of the one as of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tokens = nn.LayerNorm(8), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(self.norm(x.flatten(2)[..., :8]))


def test_factors_of_one_axis_are_not_folded_into_another(images: Tensor) -> None:
    given = torch.randn(32, 8, 4, 2)
    net = Mixing()
    with torch.no_grad():
        net.norm.weight.copy_(SPREAD)
    wanted = net(given).detach()
    graph, found = equalized(net.eval(), given, "folded")
    assert found == []
    assert torch.allclose(graph(given), wanted, atol=1e-5)


class InPlace(Gated):
    """What the depthwise convolution reads is changed before it reads it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        return self.depthwise(x.add_(1)) + 0 * x[:, :, 2:, 2:]


@pytest.mark.parametrize("extent", ["folded", "all"])
def test_what_is_changed_in_place_keeps_its_order(extent: Extent, images: Tensor) -> None:
    net = spread(InPlace(), images)
    wanted = net(images).detach()
    graph, _ = equalized(net, images, extent)
    assert torch.allclose(graph(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


class Residual(Gated):
    """What the depthwise convolution reads is added in place to something else: it stays what it was."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        other = torch.zeros_like(x)
        other += x
        return self.depthwise(x) + 0 * other[:, :, 2:, 2:]


def test_what_is_added_in_place_to_another_value_is_equalized(images: Tensor) -> None:
    net = spread(Residual(), images)
    wanted = net(images).detach()
    graph, found = equalized(net, images, "all")
    assert [one.names for one in found] == [("depthwise",)]
    assert torch.allclose(graph(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def test_layers_that_stay_in_float_are_left(images: Tensor) -> None:
    net = spread(Gated(), images)
    assert equalize(folded_graph(net, images[:2]), (images,), "all", floats=["depthwise"]) == []


def test_a_silent_channel_is_left_as_it_is(images: Tensor) -> None:
    net = spread(Chain(), images)
    with torch.no_grad():
        net.norm.weight[3] = net.norm.bias[3] = 0  # type: ignore[union-attr,index]
    wanted = net(images).detach()
    graph, found = equalized(net, images, "folded")
    assert found
    assert torch.allclose(graph(images), wanted, rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(tensor).all() for tensor in graph.state_dict().values())


class Ignored(Gated):
    """Gated, its outputs weighted: those of large channels, or all of a second branch's, may count for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.last = nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first(x))
        return self.last(torch.cat([self.depthwise(x), self.other(2 * x)], 1)).mean((2, 3))


def ignored(images: Tensor) -> Ignored:
    """Both depthwise layers read channels that are a thousandfold apart, and multiply them back."""
    net = spread(Ignored(), images)
    assert isinstance(net, Ignored)
    with torch.no_grad():
        net.other.weight.div_(SPREAD.view(-1, 1, 1, 1))
    return net


def test_channels_count_by_what_the_outputs_make_of_them(images: Tensor) -> None:
    """Where only the largest channel is read, more integers for the others are worth nothing."""
    net = ignored(images)
    _, found = equalized(net, images, "all")
    assert {one.names for one in found} == {("depthwise",), ("other",)}
    with torch.no_grad():
        net.last.weight[:, :7] = 0
        net.last.weight[:, 8:15] = 0
    assert equalized(net, images, "all")[1] == []


def test_what_few_samples_leave_silent_is_no_silent_channel(images: Tensor) -> None:
    """A channel that is small in the first samples and large in others is not multiplied as if it were small."""
    net = spread(Gated(), images)
    with torch.no_grad():
        net.first.weight[7] = 0
        net.first.weight[7, 0, 1, 1] = 1.0  # what the first channel of the images says
    first, others = images.clone(), images.clone()
    first[:, 0] *= 1e-3
    others[:, 0] *= 10
    wanted = net(others).detach()
    graph = folded_graph(net, images[:2])
    found = equalize(graph, (first,), "all", more=[(others,)])
    of_few = folded_graph(net, images[:2])
    assert equalize(of_few, (first,), "all")
    assert distance(graph, others, wanted, last=7) > distance(of_few, others, wanted, last=7) + 20, found


class Detached(Gated):
    """What is before its detach has no gradient, and counts all the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach() * 2


def test_where_no_gradient_tells_all_channels_count_alike(images: Tensor) -> None:
    net = spread(Detached(), images)
    assert [one.names for one in equalized(net, images, "all")[1]] == [("depthwise",)]


def test_a_multiplication_has_to_take_away_a_share_of_all_noise(images: Tensor) -> None:
    """However much a layer alone would gain, where another is what the outputs lose by."""
    net = ignored(images)
    with torch.no_grad():
        net.last.weight[:, 8:] *= 0.01  # a ten-thousandth of the noise
    assert "depthwise" in (names := [name for one in equalized(net, images, "all")[1] for name in one.names])
    assert "other" not in names
