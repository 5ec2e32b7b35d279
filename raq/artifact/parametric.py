"""One compiled program for every calibration of a network: scales and zero points are its inputs.

What differs between two calibrations are the ranges of the activations, and nothing else of the graph. So the graph
that stands for them all takes the scales and zero points as inputs, with the weights as their integers hold them, and
is compiled once: fake quantization in float, which is what `convert` comes to (the parity chain of the chosen candidate
shows by how much).
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from raq.artifact.inductor import lower
from raq.errors import StageError
from raq.model.inputs import Example, as_example
from raq.quantize.export import dynamic_shapes, switch_name
from raq.quantize.ptq import FixedFakeQuantize
from raq.quantize.ranges import Ranges, activation_observers, is_weight_observer, observer_nodes


def compile_for_all_ranges(
    prepared: fx.GraphModule, example: Tensor | Example, path: Path, names: Sequence[str] | None = None
) -> None:
    """The program (the network's inputs, scales [K], zero points [K]) -> logits, compiled, as a package at `path`.

    names: of layers and operators (`switchable`); then one more input, bool [L], says which of them are quantized: the
    others compute in float, from the float weight and the input as it is.
    """
    graph = ranges_as_inputs(prepared, names)
    count = len(activation_observers(prepared))
    given = as_example(example)
    more: tuple[Tensor, ...] = (torch.ones(count), torch.zeros(count, dtype=torch.int32))
    more += () if names is None else (torch.ones(len(names), dtype=torch.bool),)
    shapes = (*dynamic_shapes(given), *(None for _ in more))
    program = torch.export.export(graph, (*given.inputs, *more), strict=True, dynamic_shapes=shapes)
    lower(program, path, {"candidate": "simulated"})


def with_ranges(
    network: Callable[..., Any], found: Ranges, quantized: Sequence[bool] | None = None
) -> Callable[..., Tensor]:
    """The compiled program as a network with these ranges; quantized: of one compiled for layers, which of them are."""
    scales, zero_points = torch.from_numpy(found[0]), torch.from_numpy(found[1])
    masks = () if quantized is None else (torch.tensor(quantized),)

    def run(*inputs: Tensor) -> Tensor:
        given = network(*inputs, scales, zero_points, *masks)
        logits: Tensor = given[0] if isinstance(given, (tuple, list)) else given
        return logits

    return run


def ranges_as_inputs(prepared: fx.GraphModule, names: Sequence[str] | None = None) -> fx.GraphModule:
    """A copy whose observers of activations are arithmetic on two further inputs, and whose weights are rounded.

    names: of layers and operators (`switchable`) that a third further input switches: what is off reads what its
    observers read, and what it makes itself is passed on as it is to those who have no switch.
    """
    own = copy.deepcopy(prepared)
    graph = own.graph
    indices = {id(observer): n for n, observer in enumerate(activation_observers(own))}
    for node in [n for n in graph.nodes if n.op == "call_module" and str(n.target).startswith("_guards")]:
        graph.erase_node(node)  # checks of the inputs that the graph was exported with
    scales, zero_points, switches = _add_inputs(graph, names)
    for number, (node, observer) in enumerate(observer_nodes(own)):
        with graph.inserting_before(node):
            if is_weight_observer(observer):
                new = _rounded_weight(own, node, observer, f"_rounded_{number}")
            else:
                index = indices[id(observer)]
                scale = graph.call_function(torch.ops.aten.select.int, (scales, 0, index))
                zero_point = graph.call_function(torch.ops.aten.select.int, (zero_points, 0, index))
                bounds = (observer.quant_min, observer.quant_max)
                new = graph.call_function(fake_quantize, (node.args[0], scale, zero_point, *bounds))
        _switch_users(node, new, switches)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.set_codegen(fx.graph.CodeGen())  # the exported one knows the network's inputs alone
    own.delete_all_unused_submodules()
    graph.lint()
    own.recompile()
    return own


def _add_inputs(graph: fx.Graph, names: Sequence[str] | None) -> tuple[fx.Node, fx.Node, dict[str, fx.Node]]:
    """Add the inputs after the network's own: scales, zero points, and the switches that these names have, by name."""
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    with graph.inserting_after(last):
        scales = graph.placeholder("scales")
    with graph.inserting_after(scales):
        zero_points = graph.placeholder("zero_points")
    switches: dict[str, fx.Node] = {}
    if names is not None:
        with graph.inserting_after(zero_points):
            quantized = graph.placeholder("quantized")
        with graph.inserting_after(quantized):
            for n, name in enumerate(names):
                switches[name] = graph.call_function(torch.ops.aten.select.int, (quantized, 0, n))
    return scales, zero_points, switches


def _rounded_weight(own: fx.GraphModule, node: fx.Node, observer: Any, name: str) -> fx.Node:
    """What is read in place of an observed weight: the weight, rounded once, as the buffer `name`."""
    weight = node.args[0]
    assert isinstance(weight, fx.Node)
    if weight.op != "get_attr":
        raise StageError(
            f"the weight {weight} is computed by the model", "such a model cannot be swept: leave sweep out"
        )
    value = _attribute(own, str(weight.target))
    observer(value)
    own.register_buffer(name, FixedFakeQuantize(observer)(value).detach())
    return own.graph.get_attr(name)


def _switch_users(node: fx.Node, new: fx.Node, switches: dict[str, fx.Node]) -> None:
    """Let each user of an observed value that has a switch, or whose maker has one, read it rounded only where on."""
    made = node.args[0]
    assert isinstance(made, fx.Node)
    for user in list(node.users):
        switch = switches.get(switch_name(user)) or switches.get(switch_name(made))
        if switch is not None:
            with node.graph.inserting_before(user):
                read = node.graph.call_function(torch.ops.aten.where.self, (switch, new, made))
            user.replace_input_with(node, read)


def fake_quantize(values: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Rounding to the integers of a scale and back, as torch.fake_quantize_per_tensor_affine does it, fusible."""
    integers = torch.clamp(torch.round(values * (1.0 / scale)) + zero_point, low, high)
    return (integers - zero_point) * scale


def _attribute(module: fx.GraphModule, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), leaf)
    return tensor.detach()
