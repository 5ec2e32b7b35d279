"""Quantized max pooling that rounds its size up, kept from a pattern of Inductor's that loses this.

Inductor fuses dequantize, max_pool2d, quantize into pooling of integers. Its pattern of the low-memory pooling takes
`ceil_mode` for the type of the offsets (torch 2.14.1, inductor/fx_passes/quantization.py), so that a network whose
pooling rounds up becomes another network, of smaller maps (results/log.md). Written as pooling of integers from the
start, it is no longer that pattern.
"""

import torch
from torch import fx
from torch.export import ExportedProgram

from raq.errors import StageError

aten, decomposed = torch.ops.aten, torch.ops.quantized_decomposed
CEIL_MODE = 5  # of max_pool2d's arguments


def write_ceil_pools(program: ExportedProgram) -> int:
    """Pool integers wherever a quantized max pooling rounds up, in the program itself; how many there were.

    Raises StageError where what is pooled and what comes out are rounded differently, which no backend here does.
    """
    count = 0
    for node in [each for each in program.graph.nodes if each.target is aten.max_pool2d.default]:
        source = node.args[0]
        is_quantized = isinstance(source, fx.Node) and source.target is decomposed.dequantize_per_tensor.default
        if not is_quantized or len(node.args) <= CEIL_MODE or not node.args[CEIL_MODE]:
            continue
        for user in [each for each in node.users if each.target is decomposed.quantize_per_tensor.default]:
            if user.args[1:] != source.args[1:]:
                raise StageError(
                    f"{node.name} rounds its size up, and its input and output are rounded differently",
                    "torch would compile another network: set ceil_mode=False, or leave the pooling in float",
                )
            with program.graph.inserting_before(user):
                pooled = program.graph.call_function(
                    torch.ops.quantized.max_pool2d.default, (source.args[0], *_arguments(node))
                )
            pooled.meta.update(user.meta)
            user.replace_all_uses_with(pooled)
            program.graph.erase_node(user)
            count += 1
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    return count


def _arguments(node: fx.Node) -> tuple[object, ...]:
    """kernel, stride, padding, dilation, ceil_mode, two numbers each, as the pooling of integers wants them."""
    kernel, stride, padding, dilation, ceil_mode = node.args[1:]
    return (*(_pair(value) for value in (kernel, stride or kernel, padding, dilation)), ceil_mode)


def _pair(value: object) -> list[object]:
    given = list(value) if isinstance(value, list | tuple) else [value]
    return given * 2 if len(given) == 1 else given
