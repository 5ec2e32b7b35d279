"""What every stage leaves that makes a quantized program.

Plain torch, never ray; torch is imported inside the functions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.stages.call import LOGITS, PROGRAM, Call, Results
from raq.stages.inputs import example_input
from raq.store.views import View, view_results

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from raq.model.parity import Chain
    from raq.quantize.arithmetic import NetworkMacs


class _Made(View):
    macs: int | None
    unknown_operators: list[str]
    float_layers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A quantized program; what the FP32 network computes for an image; the layers that are in float by choice."""

    program: "ExportedProgram"
    macs: "NetworkMacs"
    float_by_choice: list[str]


def read_program(call: Call, chain: "Chain") -> Program:
    """The quantized program that a stage before has left; the chain goes on from it."""
    from raq.quantize.arithmetic import NetworkMacs
    from raq.quantize.convert import load_program

    folder = call.input("program")
    chain.go_on_from("converted", folder / LOGITS)
    made = view_results(_Made, folder)
    return Program(
        load_program(folder / PROGRAM), NetworkMacs(made.macs, made.unknown_operators), list(made.float_layers)
    )


def count_macs(call: Call, network: Any) -> Results:
    """What the FP32 network computes for an image, of which the int8 share will be taken."""
    from raq.quantize.arithmetic import network_macs

    counted = network_macs(network, example_input(call))
    return {"macs": counted.total, "unknown_operators": counted.unknown}


def keep_program(call: Call, program: Any, chain: "Chain") -> Results:
    """Save a quantized program, the last step of this stage's part of the chain."""
    from raq.quantize.convert import save_program, tensor_bytes

    chain.step("converted", program.module())
    save_program(program, Path(call.folder) / PROGRAM)
    return {"weight_bytes": tensor_bytes(program), **chain.finish(Path(call.folder) / LOGITS)}
