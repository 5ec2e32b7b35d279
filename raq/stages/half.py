"""The stage that rounds the FP32 network to 16 bits.

Plain torch, never ray; torch is imported inside the functions.
"""

from raq.stages.call import Call, Progress, Results
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network
from raq.stages.programs import count_macs, keep_program
from raq.store.settings import HalfSettings


def half_stage(call: Call, progress: Progress) -> Results:
    """Fold batch norms, round weights, export; the input and the logits stay float32."""
    from raq.quantize.half import half_program

    asked = call.read(HalfSettings)
    network, example = read_trained_network(call), example_input(call)
    chain = parity_chain(call, read_dataset(call))
    chain.step("fp32", network)
    progress({"text": f"rounding to {asked.half.dtype}"})
    program = half_program(network, example, asked.half.dtype)
    return {**count_macs(call, network), **keep_program(call, program, chain)}
