"""The stages of the modes of quantization that no calibration precedes: dynamic and weight-only.

Plain torch, never ray; torch is imported inside the functions.
"""

from collections.abc import Callable
from typing import Any

from raq.stages.call import Call, Progress, Results
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network
from raq.stages.programs import count_macs, keep_program
from raq.store.settings import ModeSettings


def dynamic_stage(call: Call, progress: Progress) -> Results:
    """Linear layers in int8, each activation rounded to the range of the batch at hand."""
    from raq.quantize.dynamic import dynamic_program

    reduce_range = call.read(ModeSettings).reduce_range
    made = _made(call, progress, lambda *given: dynamic_program(*given, reduce_range=reduce_range))
    return {"reduce_range": reduce_range, **made}


def weight_only_stage(call: Call, progress: Progress) -> Results:
    """Weights of linear layers and embeddings in int8; all else stays float32."""
    from raq.quantize.weight_only import weight_only_program

    return _made(call, progress, weight_only_program)


def _made(call: Call, progress: Progress, quantize: Callable[..., Any]) -> Results:
    """The program that `quantize` makes of the trained network."""
    network, example = read_trained_network(call), example_input(call)
    chain = parity_chain(call, read_dataset(call))
    chain.step("fp32", network)
    progress({"text": "rounding weights"})
    return {**count_macs(call, network), **keep_program(call, quantize(network, example), chain)}
