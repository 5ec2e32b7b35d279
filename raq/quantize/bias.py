"""Bias correction: what rounding shifts a layer's channels by on average is taken from its bias.

Nagel et al. 2019, Data-Free Quantization through Weight Equalization and Bias Correction, section 4.2, the empirical
kind: means are those of calibration samples, layer by layer, each after those before it were corrected.
"""

import torch
from torch import Tensor, fx

from raq.quantize.rewriting import put_tensor, tensor_of
from raq.quantize.side_by_side import ORIGINALS, channel_means, channel_of, side_by_side

BIAS = 2  # which argument, of convolutions and of linear layers
NAME = "corrected_bias_"
ADDED = "raq_added_biases"  # in a graph's meta: parameters by the node that they were added to


def correct_biases(simulated: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[str]:
    """Correct the biases of the layers that are quantized, in place; the names of the nodes that were corrected.

    simulated: the graph within `ptq.simulated`; inputs: calibration samples [n, ...]. A layer without a bias gets one.
    A bias that something else reads too is left as it is, and so are matrix products, which take none. The network that
    was exported keeps its own.
    """
    corrected: list[str] = []
    for exact, rounded, node in side_by_side(simulated, inputs):
        if not _takes_bias(node) or not any(rounded.quantizer(one) for one in node.all_input_nodes):
            continue
        wanted, given = exact.env[node], rounded.env[node]
        channel = channel_of(node, wanted)
        shift = (channel_means(given, channel) - channel_means(wanted, channel)).to(given.dtype)
        if _take_from_bias(simulated, node, shift, len(corrected)):
            rounded.env[node] = given - shift.view([-1 if at == channel else 1 for at in range(given.ndim)])
            corrected.append(node.name)
    simulated.recompile()
    return corrected


def _takes_bias(node: fx.Node) -> bool:
    """Whether a layer's operator has a bias: a convolution or a linear layer, not aten.mm nor aten.addmm."""
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    return len(arguments) > BIAS and arguments[BIAS].name == "bias"


def add_bias(graph: fx.GraphModule, node: fx.Node, name: str, bias: Tensor) -> None:
    """Give a layer without a bias one, stored under this name; noted in the graph's meta."""
    graph.register_parameter(name, torch.nn.Parameter(bias, requires_grad=False))
    with graph.graph.inserting_before(node):
        made = graph.graph.get_attr(name)
    node.args = (*node.args[:BIAS], made, *node.args[BIAS + 1 :])
    graph.meta.setdefault(ADDED, {})[node.name] = name


def _take_from_bias(graph: fx.GraphModule, node: fx.Node, shift: Tensor, number: int) -> bool:
    """Whether the shift was taken from the layer's bias; a new one has the name `NAME` and the number."""
    bias = node.args[BIAS] if len(node.args) > BIAS else None
    if bias is None:
        add_bias(graph, node, f"{NAME}{number}", -shift)
        graph.meta.setdefault(ORIGINALS, {})[f"{NAME}{number}"] = torch.zeros_like(shift)
        return True
    if not isinstance(bias, fx.Node) or bias.op != "get_attr":
        return False
    readers = [one for one in graph.graph.nodes if one.op == "get_attr" and one.target == bias.target]
    if len(readers) > 1 or len(bias.users) > 1:
        return False
    stored = tensor_of(graph, bias)
    graph.meta.setdefault(ORIGINALS, {}).setdefault(str(bias.target), stored)
    put_tensor(graph, bias, stored - shift.view_as(stored))
    return True
