"""Prepared graph to quantized program: convert, drop the float weights that int8 ones replaced, export again, save."""

from pathlib import Path

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from raq.errors import StageError
from raq.model.inputs import Example
from raq.quantize.export import export_program
from raq.quantize.qat_batch_norm import fold_scaled_convolutions
from raq.quantize.stochastic_depth import remove_stochastic_depth


def convert(prepared: fx.GraphModule, example: Tensor | Example) -> ExportedProgram:
    """The quantized program of a calibrated or quantization-aware trained graph.

    The graph must be in evaluation mode. The result holds int8 weights and no float copy of them.
    """
    remove_stochastic_depth(prepared.graph)
    fold_scaled_convolutions(prepared)
    converted = convert_pt2e(prepared)
    drop_unused_tensors(converted)
    for parameter in converted.parameters():
        parameter.requires_grad_(False)
    return export_program(converted, example)


def drop_unused_tensors(module: fx.GraphModule) -> None:
    """Remove parameters and buffers that no node reads: convert_pt2e leaves the FP32 weights beside the int8 ones."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in used:
            owner, _, leaf = name.rpartition(".")
            delattr(module.get_submodule(owner), leaf)


def tensor_bytes(program: ExportedProgram) -> int:
    """Bytes of all tensors that the program carries: weights, biases, scales, zero points."""
    tensors = [*program.state_dict.values(), *(c for c in program.constants.values() if isinstance(c, Tensor))]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def save_program(program: ExportedProgram, path: Path) -> None:
    """Write a program as torch.export's .pt2 archive."""
    torch.export.save(program, path)


def load_program(path: Path) -> ExportedProgram:
    """Read a program that `save_program` wrote; StageError if the file is damaged."""
    import torchao.quantization.pt2e.quantize_pt2e  # noqa: F401  registers the operators of quantized graphs

    try:
        return torch.export.load(path)
    except Exception as error:
        raise StageError(
            f"{path}: this quantized program cannot be read: {type(error).__name__}", "delete its folder and run again"
        ) from error
