"""Quantized max pooling that rounds its size up, kept from a pattern of Inductor's that loses this.

Inductor fuses dequantize, max_pool2d, quantize into pooling of integers. Its pattern of the low-memory pooling takes
`ceil_mode` for the type of the offsets (torch 2.14.1, inductor/fx_passes/quantization.py), so that a network whose
pooling rounds up becomes another network, of smaller maps (results/log.md). Written as pooling of integers from the
start, it is no longer that pattern.
"""

import copy

import torch
from torch import fx
from torch.export import ExportedProgram

from raq.errors import StageError

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
CEIL_MODE = 5  # of max_pool2d's arguments


def with_ceil_pools(program: ExportedProgram) -> ExportedProgram:
    """The program, pooling integers wherever a quantized max pooling rounds up; itself if none does.

    Raises StageError where what is pooled and what comes out are rounded differently, which no backend here does.
    """
    if not any(_quantized_after(node) for node in program.graph.nodes):
        return program
    own = copy.deepcopy(program)  # what it is compiled from is audited later
    for node in list(own.graph.nodes):
        for user in _quantized_after(node):
            source = node.args[0]
            if user.args[1:] != source.args[1:]:
                raise StageError(
                    f"{node.name} rounds its size up, and its input and output are rounded differently",
                    "torch would compile another network: set ceil_mode=False, or leave the pooling in float",
                )
            with own.graph.inserting_before(user):
                pooled = own.graph.call_function(
                    torch.ops.quantized.max_pool2d.default, (source.args[0], *_arguments(node))
                )
            pooled.meta.update(user.meta)
            user.replace_all_uses_with(pooled)
            own.graph.erase_node(user)
    own.graph.eliminate_dead_code()
    own.graph_module.recompile()
    return own


def _quantized_after(node: fx.Node) -> list[fx.Node]:
    """Where the outcome of a max pooling of integers that rounds up is made integers again; none for other nodes."""
    if node.target is not aten.max_pool2d.default or len(node.args) <= CEIL_MODE or not node.args[CEIL_MODE]:
        return []
    source = node.args[0]
    if not isinstance(source, fx.Node) or source.target is not decomposed.dequantize_per_tensor.default:
        return []
    return [user for user in node.users if user.target is decomposed.quantize_per_tensor.default]


def _arguments(node: fx.Node) -> tuple[object, ...]:
    """kernel, stride, padding, dilation, ceil_mode, two numbers each, as the pooling of integers wants them."""
    kernel, stride, padding, dilation, ceil_mode = node.args[1:]
    return (*(_pair(value) for value in (kernel, stride or kernel, padding, dilation)), ceil_mode)


def _pair(value: object) -> list[object]:
    given = list(value) if isinstance(value, list | tuple) else [value]
    return given * 2 if len(given) == 1 else given
