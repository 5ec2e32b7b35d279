"""A network in half precision: batch norms folded in float32, then all that is float rounded to 16 bits once."""

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from raq.errors import UserError, first_line
from raq.model.inputs import Example, as_example
from raq.quantize.export import export_program
from raq.quantize.folding import folded_graph


def half_program(network: nn.Module, example: Tensor | Example, dtype: str) -> ExportedProgram:
    """The network computing in bfloat16 or float16, for any batch size; what goes in and comes out stays as it is.

    network: in evaluation mode; example: tensors [n, ...] with n at least 2. Sums within a layer are float32, as
    kernels of 16 bits keep them. Raises UserError if it cannot be exported, or mixes in float32 of its own.
    """
    graph = folded_graph(network, example)
    try:
        program = export_program(_Half(graph, getattr(torch, dtype)), example)
        with torch.no_grad():
            program.module()(*as_example(example).inputs)  # export does not look whether types go together
    except UserError as error:
        raise UserError(f"in {dtype}, {error.message}", "set half to null") from error
    except RuntimeError as error:
        raise UserError(f"the model cannot compute in {dtype}: {first_line(error)}", "set half to null") from error
    return program


class _Half(nn.Module):
    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype)
        self.dtype = dtype

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's output as float32; inputs that are no floats are given as they are."""
        given = [each.to(self.dtype) if each.dtype.is_floating_point else each for each in inputs]
        output: Tensor = self.network(*given).float()
        return output
