"""The stage that quantizes after training, and what every quantized program leaves.

Plain torch, never ray; torch is imported inside the functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.experiment.schema import Ptq
from raq.stages.call import (
    LOGITS,
    PROGRAM,
    Call,
    Progress,
    Results,
    dataset_of,
    example_of,
    parity_chain,
    trained_network,
)
from raq.store.files import read_json
from raq.sweep.ptq import OBSERVER, PER_CHANNEL, PERCENTILE, REDUCE_RANGE, SEED, SIZE, Config

if TYPE_CHECKING:
    from raq.model.parity import Chain


def ptq_stage(call: Call, progress: Progress) -> Results:
    """Export, prepare, calibrate, convert."""
    from raq.quantize.convert import convert
    from raq.quantize.ptq import calibrate, prepare, simulated

    settings, seed, reduce_range = chosen_calibration(call)
    dataset = dataset_of(call)
    network = trained_network(call)
    example = example_of(call)
    floats = chosen_floats(call) if "layers" in call.inputs else []
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
        lambda done: progress({"share": done / size, "text": f"calibrating, {done} of {size} images"}),
    )
    chain = parity_chain(call, dataset)
    chain.step("fp32", network)
    with simulated(prepared) as as_integers:
        chain.step("simulated", as_integers)
    program = convert(prepared, example)
    used = {**settings.calibration.model_dump(mode="json"), "seed": seed}
    how = {"calibration": used, "per_channel": settings.per_channel, "reduce_range": reduce_range}
    return {**how, "float_layers": floats, **macs_of(call, network), **keep_program(call, program, chain)}


def macs_of(call: Call, network: Any) -> Results:
    """What the FP32 network computes for an image, of which the int8 share will be taken."""
    from raq.quantize.arithmetic import network_macs

    counted = network_macs(network, example_of(call))
    return {"macs": counted.total, "unknown_operators": counted.unknown}


def chosen_floats(call: Call) -> list[str]:
    """The layers of this stage's mixture that the sweep before has chosen to stay in float."""
    choice = read_json(Path(call.inputs["layers"]) / "record.json")["results"]["choice"]
    names: str = choice["mixtures"][call.settings["mixture"] - 1]["layers"]
    return names.split()


def chosen_calibration(call: Call) -> tuple[Ptq, int, bool]:
    """How to quantize, the seed of the calibration's sample, and whether ranges are reduced.

    As written, or as the sweep before has chosen.
    """
    settings = Ptq.model_validate(call.settings["ptq"])
    if "sweep" not in call.inputs:
        return settings, call.settings["seed"], call.settings["reduce_range"]
    config = read_json(Path(call.inputs["sweep"]) / "record.json")["results"]["choice"]["config"]
    return with_config(settings, config), config[SEED], config[REDUCE_RANGE]


def with_config(settings: Ptq, config: Config) -> Ptq:
    """How a trial of a sweep quantizes."""
    changed = {"size": config[SIZE], "observer": config[OBSERVER]}
    if config[PERCENTILE] is not None:
        changed["percentile"] = config[PERCENTILE]
    calibration = settings.calibration.model_copy(update=changed)
    return settings.model_copy(update={"calibration": calibration, "per_channel": config[PER_CHANNEL]})


def keep_program(call: Call, program: Any, chain: "Chain") -> Results:
    """Save a quantized program, the last step of this stage's part of the chain."""
    from raq.quantize.convert import save_program, tensor_bytes

    chain.step("converted", program.module())
    save_program(program, Path(call.folder) / PROGRAM)
    return {"weight_bytes": tensor_bytes(program), **chain.finish(Path(call.folder) / LOGITS)}
