"""The stage that quantizes after training.

Plain torch, never ray; torch is imported inside the functions.
"""

from raq.stages.call import Call, Progress, Results
from raq.stages.chosen import chosen_calibration, chosen_floats
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network
from raq.stages.programs import count_macs, keep_program

COMPARED = 32  # samples on which layers are compared
CORRECTED_BY = 128  # calibration samples whose means correct biases, in one batch


def ptq_stage(call: Call, progress: Progress) -> Results:
    """Export, prepare, calibrate, convert."""
    import torch

    from raq.quantize.bias import correct_biases
    from raq.quantize.calibration import calibration_batch, calibration_sample
    from raq.quantize.convert import convert
    from raq.quantize.losses import losses
    from raq.quantize.ptq import calibrate, prepare, simulated

    settings, seed, reduce_range = chosen_calibration(call)
    dataset = read_dataset(call)
    network = read_trained_network(call)
    example = example_input(call)
    floats = chosen_floats(call)
    prepared = prepare(
        network,
        example,
        settings.backend,
        settings.calibration,
        reduce_range=reduce_range,
        per_channel=settings.per_channel,
        floats=floats,
    )
    size = settings.calibration.size
    calibrate(
        prepared,
        dataset,
        settings.calibration,
        seed,
        lambda done: progress({"share": done / size, "text": f"calibrating, {done} of {size} samples"}),
    )
    chain = parity_chain(call, dataset)
    chain.step("fp32", network)
    with simulated(prepared) as as_integers:
        if settings.bias_correction:
            places = calibration_sample(dataset, size, seed)[:CORRECTED_BY]
            correct_biases(as_integers, calibration_batch(dataset, places))
        chain.step("simulated", as_integers)
        (compared, _), *_ = dataset.batches("test", [chain.chosen[:COMPARED]], torch.device("cpu"))
        lost = [loss.as_record() for loss in losses(as_integers, compared)]
    program = convert(prepared, example)
    used = {**settings.calibration.model_dump(mode="json"), "seed": seed}
    how = {"calibration": used, "per_channel": settings.per_channel, "reduce_range": reduce_range}
    how["losses"] = lost
    return {**how, "float_layers": floats, **count_macs(call, network), **keep_program(call, program, chain)}
