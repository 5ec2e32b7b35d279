"""A network as a graph: torch.export with a dynamic batch, and what layers the graph has.

strict=True follows the Python of a module once a call, so that a module that is called twice (the one ReLU of a
torchvision BasicBlock) is two nodes; with strict=False prepare_pt2e takes them for one partition and fails.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from raq.errors import UserError
from raq.quantize.sharing import unshare

MAX_BATCH = 65_536
CONVOLUTIONS = tuple(getattr(torch.ops.aten, name) for name in ("conv1d", "conv2d", "conv3d", "convolution"))
TRANSPOSED = tuple(getattr(torch.ops.aten, f"conv_transpose{n}") for n in ("1d", "2d", "3d"))
LINEARS = (torch.ops.aten.linear, torch.ops.aten.addmm, torch.ops.aten.mm)


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a graph: its node's name, operator, and multiply-accumulates an image."""

    name: str
    operator: str
    macs: int


def export_network(network: nn.Module, example: Tensor) -> ExportedProgram:
    """Export a user's network, its reused stateless modules un-shared; else as `export_program`."""
    return export_program(unshare(network, example), example)


def export_program(network: nn.Module, example: Tensor, max_batch: int = MAX_BATCH) -> ExportedProgram:
    """Export for any batch size from 1 to `max_batch`.

    example: float32 [n, 3, H, W] with n at least 2 (1 would be taken for a constant). Keeps the network's mode.
    Raises UserError, naming the line of the network's code, if the network cannot be exported that way.
    """
    assert len(example) > 1
    batch = Dim("batch", min=1, max=max_batch) if max_batch > 1 else None
    example = example if max_batch > 1 else example[:1]
    try:
        return torch.export.export(network, (example,), strict=True, dynamic_shapes=({0: batch},))
    except Exception as error:  # dynamo raises many kinds; each becomes one line
        raise UserError(
            f"the model cannot be exported: {_reason(error)}",
            "torch.export needs a forward without data-dependent control flow, for any batch size; "
            "--debug shows all of it",
        ) from error


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
        if packet in (*CONVOLUTIONS, *TRANSPOSED):
            found.append((node, Layer(layer_name(node), "conv", _macs(node, weight_argument=1))))
        elif packet in LINEARS:
            weight = {torch.ops.aten.linear: 1, torch.ops.aten.addmm: 2, torch.ops.aten.mm: 1}[packet]
            found.append((node, Layer(layer_name(node), "linear", _macs(node, weight))))
    return found


def is_layer(node: fx.Node) -> bool:
    """Whether a node is a convolution or a linear layer."""
    return getattr(node.target, "overloadpacket", None) in (*CONVOLUTIONS, *TRANSPOSED, *LINEARS)


def _macs(node: fx.Node, weight_argument: int) -> int:
    """Multiply-accumulates an image: all outputs for a batch of one, times the inputs of each."""
    weight_node, data_node = node.args[weight_argument], node.args[0]
    assert isinstance(weight_node, fx.Node)
    weight = _shape(weight_node)
    packet = getattr(node.target, "overloadpacket", None)
    if packet in TRANSPOSED:
        assert isinstance(data_node, fx.Node)
        return math.prod(_shape(data_node)) * math.prod(weight[1:])  # each input goes into so many outputs
    inputs = weight[0] if packet in (torch.ops.aten.addmm, torch.ops.aten.mm) else math.prod(weight[1:])
    return math.prod(_shape(node)) * inputs


def _shape(node: fx.Node) -> list[int]:
    """A shape for a batch of one; the batch may stand anywhere, and in products such as images times windows."""
    value: Any = node.meta["val"]
    return [size if isinstance(size, int) else _for_one_image(size) for size in value.shape]


def _for_one_image(size: torch.SymInt) -> int:
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


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
