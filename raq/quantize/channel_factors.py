"""Factors for the channels of an activation, and how much noise they take from a network's outputs.

The factors are those of SmoothQuant (Xiao et al. 2023), max|X|^alpha / max|W|^(1 - alpha). Which alpha, and whether it
is worth it, the layers that read the activation say, each computed alone with its input and its weights rounded: noise
in a channel counts by how much the network's outputs change by it (sensitivity.py), as channels of large numbers are
often those that matter least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from raq.quantize.bias import BIAS
from raq.quantize.one_channel import GROUPS
from raq.quantize.rewriting import tensor_of
from raq.quantize.side_by_side import channel_of

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
WEIGHT = 1  # position in a layer's arguments
ALPHAS = (0.5, 0.75, 1.0)
WIDEST = 1000.0  # how many times the least factor the greatest may be
TINY = 1e-30


@dataclass(frozen=True)
class Reach:
    """The least and the greatest number of each channel, [C]."""

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor, axis: int) -> "Reach":
        """Of these values, with channels on this axis."""
        others = [at for at in range(values.ndim) if at != axis]
        return cls(values.amin(dim=others), values.amax(dim=others))

    def __or__(self, other: "Reach") -> "Reach":
        return Reach(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    def divided_by(self, factors: Tensor) -> tuple[float, float]:
        """The least and the greatest of all channels, each divided by its factor."""
        return float((self.low / factors).min()), float((self.high / factors).max())


@dataclass(frozen=True)
class Choice:
    """Factors [C], and what they change: powers of signal, and of noise before and after.

    is_counted: whether powers are as the network's outputs see them, and can be compared between layers; else they are
    those of the layers' own outputs.
    """

    factors: Tensor
    alpha: float
    signal: float
    before: float
    after: float
    is_counted: bool

    @property
    def sqnr_db(self) -> tuple[float, float]:
        """Before and after, decibels."""
        return _decibels(self.signal, self.before), _decibels(self.signal, self.after)

    @property
    def gain_db(self) -> float:
        """What the noise falls by, decibels."""
        return _decibels(self.before, self.after)


def _decibels(power: float, than: float) -> float:
    return 10 * math.log10(max(power, TINY) / max(than, TINY))


def choose(
    graph: fx.GraphModule,
    readers: Sequence[fx.Node],
    axis: int,
    values: Tensor,
    reach: Reach,
    levels: int,
    sensitivity: dict[fx.Node, Tensor] | None,
) -> Choice:
    """The factors by which the outputs lose least by the rounding of these layers and of what they read; ones, with
    alpha 0, if none lose less.

    readers: layers that read `values`, whose channels are on `axis`; reach: of these channels, over more samples than
    values has, since a channel that a few samples leave silent gets a factor that others exceed; sensitivity: of the
    channels of their outputs; None: all count alike.
    """
    largest = torch.maximum(reach.low.abs(), reach.high.abs())  # [C]
    of_weights = torch.stack([_by_input(graph, node).abs().amax(dim=(0, 2)).flatten() for node in readers])
    depthwise = all(_groups(node) == len(largest) for node in readers)  # its weights lose nothing by factors
    wanted = [_output(node, values, tensor_of(graph, weight_of(node))) for node in readers]

    def noise(factors: Tensor) -> float:
        given = _rounded_activation(values / on_axis(factors, values.ndim, axis), reach.divided_by(factors), levels)
        return math.fsum(
            _power(_output(node, given, _rounded_weight(times(graph, node, factors))) - right, node, sensitivity)
            for node, right in zip(readers, wanted, strict=True)
        )

    ones = torch.ones_like(largest)
    signal = math.fsum(_power(right, node, sensitivity) for node, right in zip(readers, wanted, strict=True))
    before = noise(ones)
    best = Choice(ones, 0.0, signal, before, before, sensitivity is not None)
    for alpha in (1.0,) if depthwise else ALPHAS:
        factors = _factors(largest, of_weights.amax(0), alpha)
        after = noise(factors)
        if after < best.after:
            best = Choice(factors, alpha, signal, before, after, sensitivity is not None)
    return best


def _power(values: Tensor, layer: fx.Node, sensitivity: dict[fx.Node, Tensor] | None) -> float:
    """The power of these values in a layer's output, each channel's by how much the outputs change by it."""
    channel = channel_of(layer, values)
    of_channels = values.double().square().mean(dim=[at for at in range(values.ndim) if at != channel])
    return float(of_channels.sum() if sensitivity is None else (of_channels * sensitivity[layer]).sum())


def _factors(values: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max|X|^alpha / max|W|^(1 - alpha), their geometric mean 1; 1 of a channel that is always 0."""
    silent = (values == 0) | (weights == 0)
    factors = values.double().clamp(min=1e-12) ** alpha / weights.double().clamp(min=1e-12) ** (1 - alpha)
    if bool(silent.all()):
        return torch.ones_like(values)
    factors = factors / factors[~silent].log().mean().exp()
    factors = factors.clamp(min=float(factors[~silent].max()) / WIDEST)
    return torch.where(silent, torch.ones_like(factors), factors).to(values.dtype)


def on_axis(factors: Tensor, ndim: int, axis: int) -> Tensor:
    """Factors [C] as a tensor of so many dimensions, all of them 1 but the axis."""
    return factors.view([-1 if at == axis else 1 for at in range(ndim)])


def _rounded_activation(values: Tensor, edges: tuple[float, float], levels: int) -> Tensor:
    """Rounded to `levels` steps between these edges, 0 among them."""
    low, high = min(0.0, edges[0]), max(0.0, edges[1])
    scale = max((high - low) / levels, 1e-12)
    return torch.fake_quantize_per_tensor_affine(values, scale, round(-low / scale), 0, levels)


def _rounded_weight(weight: Tensor) -> Tensor:
    """Rounded to -127 to 127, with a scale for each output channel."""
    scale = (weight.abs().flatten(1).amax(1) / 127).clamp(min=1e-12)
    middle = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, middle, 0, -127, 127)


def _output(node: fx.Node, values: Tensor, weight: Tensor) -> Tensor:
    """What a layer computes of these, without its bias."""
    rest = node.args[BIAS + 1 :]
    return node.target(values, weight, None, *rest)  # type: ignore[operator,no-any-return]


def weight_of(node: fx.Node) -> fx.Node:
    """The node that reads a layer's weight."""
    weight = node.args[WEIGHT]
    assert isinstance(weight, fx.Node)
    return weight


def _groups(node: fx.Node) -> int:
    """The groups of a convolution; 1 of a linear layer."""
    return int(node.args[GROUPS]) if node.target in CONVOLUTIONS and len(node.args) > GROUPS else 1  # type: ignore[arg-type]


def _by_input(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """A layer's weight [O, I / groups, ...] as [O / groups, groups, K, I / groups]: the last but K are its inputs."""
    weight, groups = tensor_of(graph, weight_of(node)), _groups(node)
    outputs, inputs = weight.shape[:2]
    return weight.reshape(groups, outputs // groups, inputs, -1).permute(1, 0, 3, 2)


def times(graph: fx.GraphModule, node: fx.Node, factors: Tensor) -> Tensor:
    """A layer's weight with each input channel times its factor."""
    weight, groups = tensor_of(graph, weight_of(node)), _groups(node)
    outputs, inputs = weight.shape[:2]
    scaled = weight.reshape(groups, outputs // groups, inputs, -1) * factors.view(groups, 1, inputs, 1)
    return scaled.reshape(weight.shape)
