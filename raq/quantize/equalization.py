"""Equalization: channels of a layer's input are given ranges alike, and its weights take the factors back.

The integers of an activation are one range for all of its channels, so that a channel of small numbers gets few of
them. Divided by a factor for each channel it gets more; the layer that reads it multiplies its weights by the same
factors, and computes what it did. Where the division can be folded into what is before (a normalisation, or a layer
whose channels reach this one by operators that keep factors, ReLU say) it costs nothing: that is cross-layer
equalization (Nagel et al. 2019, Data-Free Quantization, section 4.1) and SmoothQuant (Xiao et al. 2023), from which the
factors are: max|X|^alpha / max|W|^(1 - alpha), here with the alpha by which a layer computed alone loses least.
Elsewhere it is a multiplication in front of the layer.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from raq.experiment.fields import Extent
from raq.model.parity import sqnr_db
from raq.quantize.bias import BIAS
from raq.quantize.export import layer_name, switch_name
from raq.quantize.one_channel import GROUPS
from raq.quantize.rewriting import put_tensor, tensor_of

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default)
READERS = (*CONVOLUTIONS, aten.linear.default)
WEIGHT = 1  # position in a layer's arguments
ALPHAS = (0.5, 0.75, 1.0)
POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)
KEEPS_FACTORS = (aten.relu.default, aten.relu_.default, aten.contiguous.default, aten.dropout.default, *POOLS)
NORMS = {aten.layer_norm.default: (2, 3), aten.batch_norm.default: (1, 2)}  # where their weight and bias stand
FOLDED_DB, MULTIPLIED_DB = 0.5, 3.0  # what a layer alone must gain: for nothing, and for a multiplication
ENOUGH_DB = 40.0  # a layer that has this needs no multiplication
MULTIPLIED = "raq_multiplied"  # in a graph's meta: every `Multiplied` of it
WIDEST = 1000.0  # how many times the least factor the greatest may be


@dataclass(frozen=True)
class Equalized:
    """Layers whose common input was equalized. into: what takes the division; None: a multiplication before them.

    own_sqnr_db: the least of them, each computed alone, before and after.
    """

    names: tuple[str, ...]
    into: str | None
    alpha: float
    own_sqnr_db: tuple[float, float]


@dataclass(frozen=True)
class Multiplied:
    """A multiplication that equalization put in: of which node, before which, by what. factor: 1 but of one axis."""

    data: str
    readers: tuple[str, ...]
    factor: Tensor


@dataclass(frozen=True)
class _Readers:
    """The layers that read one activation, `data`, with channels on the axis `axis`; into: what can take factors."""

    data: fx.Node
    nodes: tuple[fx.Node, ...]
    axis: int
    into: fx.Node | None


def equalize(
    graph: fx.GraphModule,
    inputs: tuple[Tensor, ...],
    extent: Extent,
    levels: int = 255,
    floats: Collection[str] = (),
) -> list[Equalized]:
    """Equalize an exported graph in place, batch norms folded before; what was done, in order of execution.

    inputs: calibration samples [n, ...]. extent: folded, only where it costs nothing; all: by a multiplication too,
    where a layer alone is below ENOUGH_DB and gains at least MULTIPLIED_DB. levels: the integers of an activation, less
    one. floats: names of what stays in float. Weights are taken to have a scale for each output channel.
    """
    wanted = {
        readers.data: readers for readers in _readers(graph, floats) if extent == "all" or readers.into is not None
    }
    found: list[tuple[_Readers, Tensor, Equalized]] = []
    for readers, values in _run(graph, inputs, wanted):
        choice = _choose(graph, readers, values, levels)
        if choice is not None:
            found.append((readers, *choice))
    for readers, factors, _ in found:
        _apply(graph, readers, factors)
    graph.recompile()
    return [equalized for *_, equalized in found]


def _readers(graph: fx.GraphModule, floats: Collection[str]) -> Iterator[_Readers]:
    """The activations that layers read, where all the layers can take factors into their weights."""
    for data in graph.graph.nodes:
        nodes = tuple(user for user in data.users if user.target in READERS and user.args[0] is data)
        if not nodes or not all(_owns(graph, node.args[WEIGHT], node) for node in nodes):
            continue
        if any(switch_name(node) in floats for node in nodes) or any(_writes_into(user, data) for user in data.users):
            continue
        axes = {1 if node.target in CONVOLUTIONS else data.meta["val"].ndim - 1 for node in nodes}
        if len(axes) > 1:
            continue
        axis, alone = axes.pop(), len(nodes) == len(data.users)
        yield _Readers(data, nodes, axis, _origin(graph, data, axis) if alone else None)


def _writes_into(node: fx.Node, data: fx.Node) -> bool:
    """Whether an operator changes this value: relu_(data), add_(data, other); add_(other, data) does not."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = zip(node.target._schema.arguments, node.args, strict=False)
    return any(
        one is data and argument.alias_info is not None and argument.alias_info.is_write for argument, one in given
    )


def _owns(graph: fx.GraphModule, tensor: Any, node: fx.Node) -> bool:
    """Whether `tensor` is stored and read by this node alone."""
    if not isinstance(tensor, fx.Node) or tensor.op != "get_attr":
        return False
    same = [one for one in graph.graph.nodes if one.op == "get_attr" and one.target == tensor.target]
    return {user for one in same for user in one.users} == {node}


def _origin(graph: fx.GraphModule, data: fx.Node, axis: int) -> fx.Node | None:
    """The layer or normalisation whose channels are those of `data` on this axis, times factors at most; None if there
    is none."""
    node, ndim = data, data.meta["val"].ndim
    while node.target in KEEPS_FACTORS and isinstance(node.args[0], fx.Node) and len(node.args[0].users) == 1:
        if node.target in POOLS and (ndim, axis) != (4, 1):
            return None
        node = node.args[0]
    last = node.target in (aten.layer_norm.default, aten.linear.default)
    if axis != (ndim - 1 if last else 1) or node.meta["val"].ndim != ndim:
        return None
    if node.target in NORMS:
        one_axis = node.target is not aten.layer_norm.default or len(node.args[1]) == 1  # type: ignore[arg-type]
        given = [node.args[at] if len(node.args) > at else None for at in NORMS[node.target]]
        return node if one_axis and all(_owns(graph, one, node) for one in given) else None
    if node.target not in READERS or not _owns(graph, node.args[WEIGHT], node):
        return None
    bias = node.args[BIAS] if len(node.args) > BIAS else None
    return node if bias is None or _owns(graph, bias, node) else None


def _run(
    graph: fx.GraphModule, inputs: tuple[Tensor, ...], wanted: dict[fx.Node, _Readers]
) -> Iterator[tuple[_Readers, Tensor]]:
    """The activations that are wanted, as the graph computes them, each once."""
    interpreter = fx.Interpreter(graph)
    interpreter.args_iter = iter(inputs)
    with torch.no_grad():
        for node in graph.graph.nodes:
            interpreter.env[node] = interpreter.run_node(node)
            if node in wanted:
                yield wanted[node], interpreter.env[node]
            for done in interpreter.user_to_last_uses.get(node, []):
                del interpreter.env[done]


def _choose(graph: fx.GraphModule, readers: _Readers, values: Tensor, levels: int) -> tuple[Tensor, Equalized] | None:
    """The factors by which these layers, each computed alone, lose least; None if that is not enough."""
    largest = values.abs().amax(dim=[at for at in range(values.ndim) if at != readers.axis])  # [C]
    of_weights = torch.stack([_by_input(graph, node).abs().amax(dim=(0, 2)).flatten() for node in readers.nodes])
    alike = all(_groups(node) == len(largest) for node in readers.nodes)  # depthwise: weights lose nothing by it
    wanted = [_output(node, values, tensor_of(graph, _weight(node))) for node in readers.nodes]
    before = _own_sqnr(graph, readers, values, torch.ones_like(largest), wanted, levels)
    best: tuple[float, float, Tensor] | None = None
    for alpha in (1.0,) if alike else ALPHAS:
        factors = _factors(largest, of_weights.amax(0), alpha)
        after = _own_sqnr(graph, readers, values, factors, wanted, levels)
        if best is None or after > best[0]:
            best = (after, alpha, factors)
    assert best is not None
    after, alpha, factors = best
    worth = after - before >= FOLDED_DB
    if readers.into is None:
        worth = after - before >= MULTIPLIED_DB and before < ENOUGH_DB
    if not worth:
        return None
    into = None if readers.into is None else layer_name(readers.into)
    return factors, Equalized(tuple(map(layer_name, readers.nodes)), into, alpha, (before, after))


def _factors(values: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """max|X|^alpha / max|W|^(1 - alpha), their geometric mean 1; 1 of a channel that is always 0."""
    silent = (values == 0) | (weights == 0)
    factors = values.double().clamp(min=1e-12) ** alpha / weights.double().clamp(min=1e-12) ** (1 - alpha)
    if bool(silent.all()):
        return torch.ones_like(values)
    factors = factors / factors[~silent].log().mean().exp()
    factors = factors.clamp(min=float(factors[~silent].max()) / WIDEST)
    return torch.where(silent, torch.ones_like(factors), factors).to(values.dtype)


def _own_sqnr(
    graph: fx.GraphModule, readers: _Readers, values: Tensor, factors: Tensor, wanted: list[Tensor], levels: int
) -> float:
    """The least SQNR of these layers' outputs, their input and weights rounded, with these factors; decibels."""
    given = _rounded_activation(values / _on_axis(factors, values.ndim, readers.axis), levels)
    found = []
    for node, right in zip(readers.nodes, wanted, strict=True):
        weight = _rounded_weight(_times(graph, node, factors))
        distance = sqnr_db(right.numpy(), _output(node, given, weight).numpy())
        found.append(float("inf") if distance is None else distance)
    return min(found)


def _on_axis(factors: Tensor, ndim: int, axis: int) -> Tensor:
    return factors.view([-1 if at == axis else 1 for at in range(ndim)])


def _rounded_activation(values: Tensor, levels: int) -> Tensor:
    """Rounded to `levels` steps between the least and the greatest value, 0 among them."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
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


def _weight(node: fx.Node) -> fx.Node:
    """The node that reads a layer's weight."""
    weight = node.args[WEIGHT]
    assert isinstance(weight, fx.Node)
    return weight


def _groups(node: fx.Node) -> int:
    """The groups of a convolution; 1 of a linear layer."""
    return int(node.args[GROUPS]) if node.target in CONVOLUTIONS and len(node.args) > GROUPS else 1  # type: ignore[arg-type]


def _by_input(graph: fx.GraphModule, node: fx.Node) -> Tensor:
    """A layer's weight [O, I / groups, ...] as [O / groups, groups, K, I / groups]: the last but K are its inputs."""
    weight, groups = tensor_of(graph, _weight(node)), _groups(node)
    outputs, inputs = weight.shape[:2]
    return weight.reshape(groups, outputs // groups, inputs, -1).permute(1, 0, 3, 2)


def _times(graph: fx.GraphModule, node: fx.Node, factors: Tensor) -> Tensor:
    """A layer's weight with each input channel times its factor."""
    weight, groups = tensor_of(graph, _weight(node)), _groups(node)
    outputs, inputs = weight.shape[:2]
    scaled = weight.reshape(groups, outputs // groups, inputs, -1) * factors.view(groups, 1, inputs, 1)
    return scaled.reshape(weight.shape)


def _apply(graph: fx.GraphModule, readers: _Readers, factors: Tensor) -> None:
    """Multiply the layers' weights, and divide what they read."""
    for node in readers.nodes:
        put_tensor(graph, _weight(node), _times(graph, node, factors))
    origin = readers.into
    if origin is not None:
        places: tuple[int, int] = NORMS.get(origin.target, (WEIGHT, BIAS))  # type: ignore[call-overload]
        for at in places:
            given = origin.args[at] if len(origin.args) > at else None
            if isinstance(given, fx.Node):
                tensor = tensor_of(graph, given)
                put_tensor(graph, given, tensor / _on_axis(factors, tensor.ndim, 0))
        return
    factor = 1 / _on_axis(factors, readers.data.meta["val"].ndim, readers.axis)
    multiply(graph, Multiplied(readers.data.name, tuple(node.name for node in readers.nodes), factor))


def multiply(graph: fx.GraphModule, asked: Multiplied) -> None:
    """Multiply an activation by a factor before the nodes named; noted in the graph's meta."""
    nodes = {node.name: node for node in graph.graph.nodes}
    data, name = nodes[asked.data], f"equalizing_{asked.data}"
    graph.register_buffer(name, asked.factor)
    first = next(node for node in graph.graph.nodes if node.name in asked.readers)
    with graph.graph.inserting_before(first):
        factor = graph.graph.get_attr(name)
        scaled = graph.graph.call_function(aten.mul.Tensor, (data, factor))
    factor.meta = {"val": asked.factor}
    scaled.meta = {"val": data.meta["val"]}
    for reader in asked.readers:
        nodes[reader].replace_input_with(data, scaled)
    graph.meta.setdefault(MULTIPLIED, []).append(asked)
