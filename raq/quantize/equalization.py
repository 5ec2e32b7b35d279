"""Equalization: channels of a layer's input are given ranges alike, and its weights take the factors back.

The integers of an activation are one range for all of its channels, so that a channel of small numbers gets few of
them. Divided by a factor for each channel it gets more; the layer that reads it multiplies its weights by the same
factors, and computes what it did. Where the division can be folded into what is before (a normalisation, or a layer
whose channels reach this one by operators that keep factors, ReLU say) it costs nothing: that is cross-layer
equalization (Nagel et al. 2019, Data-Free Quantization, section 4.1) and SmoothQuant (Xiao et al. 2023), from which the
factors come (channel_factors.py). Elsewhere it is a multiplication in front of the layer.
"""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from raq.experiment.fields import Extent
from raq.model.inputs import copies
from raq.quantize.bias import BIAS
from raq.quantize.channel_factors import CONVOLUTIONS, WEIGHT, Choice, Reach, choose, on_axis, times, weight_of
from raq.quantize.export import layer_name, switch_name
from raq.quantize.rewriting import put_tensor, tensor_of
from raq.quantize.sensitivity import sensitivities

aten = torch.ops.aten
READERS = (*CONVOLUTIONS, aten.linear.default)
POOLS = (aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)
KEEPS_FACTORS = (aten.relu.default, aten.relu_.default, aten.contiguous.default, aten.dropout.default, *POOLS)
NORMS = {aten.layer_norm.default: (2, 3), aten.batch_norm.default: (1, 2)}  # where their weight and bias stand
FOLDED_DB, MULTIPLIED_DB = 0.5, 3.0  # by which the noise must fall: for nothing, and for a multiplication
MIN_SHARE = 0.002  # of the noise that folding leaves, that a multiplication must take away
MULTIPLIED = "raq_multiplied"  # in a graph's meta: every `Multiplied` of it


@dataclass(frozen=True)
class Equalized:
    """Layers whose common input was equalized. into: what takes the division; None: a multiplication before them.

    own_sqnr_db: before and after, with no other layer rounded, each channel counted by how much the network's outputs
    change by it.
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
    more: Iterable[tuple[Tensor, ...]] = (),
) -> list[Equalized]:
    """Equalize an exported graph in place, batch norms folded before; what was done, in order of execution.

    inputs: calibration samples [n, ...]; more: batches of others, whose ranges alone count. extent: folded, only where
    it costs nothing; all: by multiplications too, as `_is_multiplied` says. levels: the integers of an activation, less
    one. floats: names of what stays in float. Weights are taken to have a scale for each output channel. Noise counts
    by how much the outputs change by it; where no gradient tells, that of all channels alike.
    """
    wanted = {
        readers.data: readers for readers in _readers(graph, floats) if extent == "all" or readers.into is not None
    }
    if not wanted:
        return []
    sensitivity = sensitivities(graph, inputs, {node for readers in wanted.values() for node in readers.nodes})
    reaches: dict[fx.Node, Reach] = {}
    for batch in more:
        for readers, values in _run(graph, batch, wanted):
            own = Reach.of(values, readers.axis)
            reaches[readers.data] = own | reaches.get(readers.data, own)
    found: list[tuple[_Readers, Choice]] = []
    for readers, values in _run(graph, inputs, wanted):
        own = Reach.of(values, readers.axis)
        reach = own | reaches.get(readers.data, own)
        heard = {node: sensitivity[node] for node in readers.nodes}
        counted = heard if any(bool(one.any()) for one in heard.values()) else None
        found.append((readers, choose(graph, readers.nodes, readers.axis, values, reach, levels, counted)))
    left = math.fsum(
        choice.after if _is_folded(readers, choice) else choice.before
        for readers, choice in found if choice.is_counted
    )  # fmt: skip
    kept = [
        (readers, choice) for readers, choice in found
        if _is_folded(readers, choice) or _is_multiplied(readers, choice, left)
    ]  # fmt: skip
    for readers, choice in kept:
        _apply(graph, readers, choice.factors)
    graph.recompile()
    return [_record(readers, choice) for readers, choice in kept]


def _is_folded(readers: _Readers, choice: Choice) -> bool:
    """Whether it costs nothing, and gains something."""
    return readers.into is not None and choice.gain_db >= FOLDED_DB


def _is_multiplied(readers: _Readers, choice: Choice, left: float) -> bool:
    """Whether it is worth a multiplication. left: the noise of all activations that could be equalized, after folding;
    it is compared where gradients told what noise counts."""
    matters = not choice.is_counted or choice.before - choice.after >= MIN_SHARE * left
    return readers.into is None and choice.gain_db >= MULTIPLIED_DB and matters


def _record(readers: _Readers, choice: Choice) -> Equalized:
    into = None if readers.into is None else layer_name(readers.into)
    return Equalized(tuple(map(layer_name, readers.nodes)), into, choice.alpha, choice.sqnr_db)


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
    interpreter.args_iter = iter(copies(inputs))
    with torch.no_grad():
        for node in graph.graph.nodes:
            interpreter.env[node] = interpreter.run_node(node)
            if node in wanted:
                yield wanted[node], interpreter.env[node]
            for done in interpreter.user_to_last_uses.get(node, []):
                del interpreter.env[done]


def _apply(graph: fx.GraphModule, readers: _Readers, factors: Tensor) -> None:
    """Multiply the layers' weights, and divide what they read."""
    for node in readers.nodes:
        put_tensor(graph, weight_of(node), times(graph, node, factors))
    origin = readers.into
    if origin is not None:
        places: tuple[int, int] = NORMS.get(origin.target, (WEIGHT, BIAS))  # type: ignore[call-overload]
        for at in places:
            given = origin.args[at] if len(origin.args) > at else None
            if isinstance(given, fx.Node):
                tensor = tensor_of(graph, given)
                put_tensor(graph, given, tensor / on_axis(factors, tensor.ndim, 0))
        return
    factor = 1 / on_axis(factors, readers.data.meta["val"].ndim, readers.axis)
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
