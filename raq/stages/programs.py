"""What every stage leaves that makes a quantized program.

Plain torch, never ray; torch is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.stages.call import LOGITS, PROGRAM, Call, Results
from raq.stages.inputs import example_input

if TYPE_CHECKING:
    from raq.model.parity import Chain


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
