"""The stage that quantizes after training.

Plain torch, never ray; torch is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from raq.stages.call import CALIBRATED, Call, Progress, Results
from raq.stages.chosen import chosen_calibration, chosen_floats
from raq.stages.effort import quantize_by_effort
from raq.stages.inputs import example_input, parity_chain, read_dataset, read_trained_network, scorer
from raq.stages.programs import count_macs, keep_program
from raq.store.settings import PtqSettings

if TYPE_CHECKING:
    from torch import Tensor

    from raq.model.dataset import Dataset

COMPARED = 32  # samples on which layers are compared


def _compared(dataset: "Dataset", seed: int) -> "tuple[Tensor, ...]":
    """Inputs drawn from the validation split, or from the calibration split where there is none, those that calibrate
    last: what is learned of layers leads to decisions, for which the test split is not there."""
    import torch

    from raq.model.dataset import calibration_indices

    split = "validation" if dataset.size("validation") else "calibration"
    every = calibration_indices(dataset.size(split), dataset.size(split), seed)
    chosen = every[-COMPARED:]
    (inputs, _), *_ = dataset.batches(split, [chosen], torch.device("cpu"))
    return inputs


def ptq_stage(call: Call, progress: Progress) -> Results:
    """Export, prepare, calibrate, correct, convert."""
    from raq.quantize.calibrated import pin_ranges, save_calibrated
    from raq.quantize.convert import convert
    from raq.quantize.losses import losses
    from raq.quantize.methods import Methods, Source
    from raq.quantize.ptq import simulated

    settings, seed, reduce_range = chosen_calibration(call)
    dataset, network, example, floats = (
        read_dataset(call), read_trained_network(call), example_input(call), chosen_floats(call)
    )  # fmt: skip
    source = Source(
        network,
        example,
        dataset,
        settings.backend,
        settings.calibration,
        seed,
        reduce_range,
        settings.per_channel,
        floats,
    )
    enough = call.read(PtqSettings).enough_drop or 0.0
    made, climbed = quantize_by_effort(
        source, Methods.asked(settings), settings.effort, scorer(call), enough,
        lambda said, share: progress({"text": said} | ({} if share is None else {"share": share})),
    )  # fmt: skip
    pin_ranges(made.prepared)
    save_calibrated(made, source, Path(call.folder) / CALIBRATED)
    chain = parity_chain(call, dataset)
    chain.step("fp32", network)
    with simulated(made.prepared) as as_integers:
        chain.step("simulated", as_integers)
        lost = [loss.as_record() for loss in losses(as_integers, _compared(dataset, seed))]
    program = convert(made.prepared, example)
    used = {**made.methods.calibrated_by(settings.calibration).model_dump(mode="json"), "seed": seed}
    how = {"calibration": used, "per_channel": settings.per_channel, "reduce_range": reduce_range}
    how |= {"losses": lost, "methods": made.as_record(), "effort": climbed, "float_layers": floats}
    return {**how, **count_macs(call, network), **keep_program(call, program, chain)}
