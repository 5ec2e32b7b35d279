"""A network as a graph: torch.export with a dynamic batch, and what layers the graph has.

strict=True follows the Python of a module once a call, so that a module that is called twice (the one ReLU of a
torchvision BasicBlock) is two nodes; with strict=False prepare_pt2e takes them for one partition and fails.
"""

import inspect
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from raq.errors import UserError
from raq.model.inputs import Example, as_example
from raq.quantize.one_channel import with_second_channel
from raq.quantize.unshare import unshare

MAX_BATCH = 65_536
CONVOLUTIONS = tuple(getattr(torch.ops.aten, name) for name in ("conv1d", "conv2d", "conv3d", "convolution"))
TRANSPOSED = tuple(getattr(torch.ops.aten, f"conv_transpose{n}") for n in ("1d", "2d", "3d"))
WEIGHT_ONLY = torch.ops.aten._weight_int8pack_mm  # of data [n, K], int8 weights [N, K] and scales [N]
LINEARS = (torch.ops.aten.linear, torch.ops.aten.addmm, torch.ops.aten.mm)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a graph: its node's name, operator, and multiply-accumulates an image."""

    name: str
    operator: str
    macs: int


def export_network(network: nn.Module, example: Tensor | Example) -> ExportedProgram:
    """Export a user's network, its reused stateless modules un-shared; else as `export_program`."""
    return export_program(unshare(network, example), example)


def export_for_lowering(network: nn.Module, example: Tensor | Example) -> ExportedProgram:
    """`export_network`, for compiling it as it is: convolutions of one channel get a second one of zeros."""
    program = export_network(network, example)
    module = program.module()
    return export_program(module, example) if with_second_channel(module) else program


def graph_of(network: nn.Module, example: Tensor | Example) -> fx.GraphModule:
    """The graph of `export_network` in the form that quantizers know convolutions by, for prepare.

    Raises UserError for a batch norm without running statistics: no quantizer's rewrite takes one.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not module.track_running_stats:
            raise UserError(
                f"the model's {name} keeps no running statistics: deployed, it would still normalise by the batch, "
                "which cannot be quantized",
                "build the model with track_running_stats=True",
            )
    graph = export_network(network, example).module()
    graph.graph.eliminate_dead_code()  # what is computed and not given (a pooler, say): quantizers fail there
    ordered: dict[fx.Node, fx.Node] = {}
    for node in list(graph.graph.nodes):
        if node.target in (torch.ops.aten.conv1d.padding, torch.ops.aten.conv2d.padding, torch.ops.aten.conv3d.padding):
            _pad_by_numbers(graph.graph, node)
        elif node.target is torch.ops.aten.pad.default and "source_fn_stack" in node.meta:
            # reflected and circular padding: torch traces it as a part of the convolution's module, and quantizers
            # want a convolution to be one node
            node.meta["source_fn_stack"] = [(node.name, nn.functional.pad)]
        elif node.target is torch.ops.aten.linear.default:
            if not _is_known_linear(node):
                # a projection of attention: torch traces it as a part of that, and quantizers know layers by name
                node.meta["source_fn_stack"] = [(node.name, nn.functional.linear)]
            _read_contiguous(graph.graph, node, ordered)
    with_second_channel(graph)
    graph.recompile()
    return graph


def _is_known_linear(node: fx.Node) -> bool:
    """Whether quantizers know a linear layer by what it was traced from."""
    stack = node.meta.get("source_fn_stack") or [("", None)]
    return stack[-1][1] in (nn.Linear, nn.functional.linear)


def _read_contiguous(graph: fx.Graph, node: fx.Node, ordered: dict[fx.Node, fx.Node]) -> None:
    """Let a linear layer read its input in order, where that has more than two dimensions.

    Else, where it is transposed, Inductor takes it for a batch of products, whose weight it reads once for each:
    ViT-B/16 at one image spent 195 of 238 ms there; and torchao's pattern for int8 fails if the batch is dynamic. It is
    asked for everywhere: what is in order when it is traced may be compiled otherwise (timm's levit). What that costs
    where it was in order anyway has not been measured.

    ordered: by value, what reads it in order, for several layers that read the same.
    """
    data = node.args[0]
    assert isinstance(data, fx.Node)
    value = data.meta["val"]
    if value.dim() <= 2:
        return
    if data not in ordered:
        with graph.inserting_before(node):
            ordered[data] = graph.call_function(torch.ops.aten.contiguous.default, (data,))
        ordered[data].meta = {"val": value.contiguous()}
    node.replace_input_with(data, ordered[data])


def _pad_by_numbers(graph: fx.Graph, node: fx.Node) -> None:
    """A convolution with padding "same" or "valid" as one with numbers; an odd row or column is padded before it."""
    arguments: tuple[Any, ...] = (*node.args, *_CONVOLUTION_DEFAULTS[len(node.args) :])
    data, weight, bias, stride, kind, dilation, groups = arguments
    assert isinstance(data, fx.Node)
    assert isinstance(weight, fx.Node)
    kernel = weight.meta["val"].shape[2:]
    dilations = list(dilation) * (len(kernel) // len(dilation))
    totals = [d * (k - 1) if kind == "same" else 0 for d, k in zip(dilations, kernel, strict=True)]
    if any(total % 2 for total in totals):  # torch pads the end by the one that is over
        ends = [amount for total in reversed(totals) for amount in (0, total % 2)]
        with graph.inserting_before(node):
            padded = graph.call_function(torch.ops.aten.constant_pad_nd.default, (data, ends, 0.0))
        padded.meta = {"val": nn.functional.pad(data.meta["val"], ends)}
        data = padded
    overload = getattr(torch.ops.aten, f"conv{len(kernel)}d").default
    node.target = overload
    node.args = (data, weight, bias, stride, [total // 2 for total in totals], dilation, groups)


_CONVOLUTION_DEFAULTS: tuple[Any, ...] = (None, None, None, [1], "valid", [1], 1)


def export_program(network: nn.Module, example: Tensor | Example, max_batch: int = MAX_BATCH) -> ExportedProgram:
    """Export for any batch size from 1 to `max_batch`, and any size of the axes that may vary.

    example: tensors [n, ...] with n at least 2 (1 would be taken for a constant), one alone or an Example. Keeps the
    network's mode. Raises UserError, naming the line of the network's code, if it cannot be exported that way.
    """
    given = as_example(example)
    assert len(given) > 1
    if max_batch == 1:
        given = given.first(1)
    shapes = dynamic_shapes(given, max_batch)
    # an exported graph takes its inputs by name, a network with a signature of its own as one list
    dynamic: Any = (shapes,) if _takes_a_list(network) else shapes
    try:
        return torch.export.export(network, given.inputs, strict=True, dynamic_shapes=dynamic)
    except Exception as error:  # dynamo raises many kinds; each becomes one line
        raise UserError(
            f"the model cannot be exported: {_reason(error)}",
            "torch.export needs a forward without data-dependent control flow, for any batch size; "
            "--debug shows all of it",
        ) from error


def dynamic_shapes(example: Example, max_batch: int = MAX_BATCH) -> tuple[dict[int, Any], ...]:
    """What of each input may have another size, as torch.export takes it: the batch, and the axes that vary."""
    dims = {axis.name: Dim(axis.name, min=axis.least, max=axis.most) for axes in example.axes for axis in axes}
    batch = Dim("batch", min=1, max=max_batch) if max_batch > 1 else None
    return tuple(
        {0: batch, **{at: dims[axis.name] for at, axis in example.axes_of(number).items()}}
        for number in range(len(example.inputs))
    )


def _takes_a_list(network: nn.Module) -> bool:
    """Whether its forward is `forward(self, *inputs)`, which torch.export takes for one argument."""
    parameters = inspect.signature(network.forward).parameters.values()
    return [each.kind for each in parameters] == [inspect.Parameter.VAR_POSITIONAL]


def _reason(error: Exception) -> str:
    """The first line of an export error, and the line of the model's code that it is about."""
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    places = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [place for place in places if "/torch/" not in place[0]] or places
    where = f" ({own[-1][0]}, line {own[-1][1]})" if own else ""
    return f"{first}{where}"


def layers(graph: fx.Graph) -> list[tuple[fx.Node, Layer]]:
    """The convolution and linear layers of an exported graph, in order."""
    found = []
    for node in graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet is WEIGHT_ONLY:
            found.append((node, Layer(layer_name(node), "linear", _macs(node))))
        elif packet in (*CONVOLUTIONS, *TRANSPOSED):
            found.append((node, Layer(layer_name(node), "conv", _macs(node))))
        elif packet in LINEARS:
            found.append((node, Layer(layer_name(node), "linear", _macs(node))))
    return found


def is_layer(node: fx.Node) -> bool:
    """Whether a node is a convolution or a linear layer."""
    return getattr(node.target, "overloadpacket", None) in (*CONVOLUTIONS, *TRANSPOSED, *LINEARS, WEIGHT_ONLY)


def data_and_weight_at(node: fx.Node) -> tuple[int, int]:
    """Which arguments of a layer are its data and its weight."""
    return (1, 2) if getattr(node.target, "overloadpacket", None) is torch.ops.aten.addmm else (0, 1)


def _macs(node: fx.Node) -> int:
    """Multiply-accumulates an image: all outputs for a batch of one, times the inputs of each."""
    data_node, weight_node = (node.args[at] for at in data_and_weight_at(node))
    assert isinstance(weight_node, fx.Node)
    weight = _shape(weight_node)
    packet = getattr(node.target, "overloadpacket", None)
    if packet in TRANSPOSED:
        assert isinstance(data_node, fx.Node)
        return math.prod(_shape(data_node)) * math.prod(weight[1:])  # each input goes into so many outputs
    inputs = weight[0] if packet in (torch.ops.aten.addmm, torch.ops.aten.mm) else math.prod(weight[1:])
    return math.prod(_shape(node)) * inputs


def _shape(node: fx.Node) -> list[int]:
    """A shape for a batch of one; the batch may stand anywhere, and in products such as images times windows.

    Other axes that vary have the size that they were exported with.
    """
    value: Any = node.meta["val"]
    batch = _batch_symbols(node.graph)
    return [size if isinstance(size, int) else _for_one_sample(size, batch) for size in value.shape]


def _batch_symbols(graph: fx.Graph) -> set[Any]:
    """What stands for the batch in a graph's shapes: the first size of its first input that has one."""
    for node in graph.nodes:
        value = node.meta.get("val") if node.op == "placeholder" else None
        if isinstance(value, Tensor) and value.dim() and isinstance(value.shape[0], torch.SymInt):
            return set(value.shape[0].node.expr.free_symbols)
    return set()


def _for_one_sample(size: torch.SymInt, batch: set[Any]) -> int:
    assert size.node.shape_env is not None
    expression, known = size.node.expr, size.node.shape_env.backed_var_to_val
    seen = {one: 1 if not batch or one in batch else int(known[one]) for one in expression.free_symbols}
    return int(expression.subs(seen))


def switch_name(node: fx.Node) -> str:
    """What a node is called where it is left in float: a layer by `layer_name`, any other by its own name (add_3)."""
    return layer_name(node) if is_layer(node) else node.name


def layer_name(node: fx.Node) -> str:
    """The module that the node came from, such as layer1.0.conv1; the node's own name if that is not known."""
    stack = node.meta.get("nn_module_stack")
    path = str(list(stack.values())[-1][0]) if stack else ""
    name = re.sub(r"^L\['self'\]\.?|^L__self__\.?", "", path).replace("_modules.", "")
    name = re.sub(r"\['?([^'\]]+)'?\]", r".\1", name).strip(".")
    return name or node.name
