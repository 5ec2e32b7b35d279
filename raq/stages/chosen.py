"""What the sweep before a stage has chosen: a calibration, the layers that stay in float, a training."""

from pathlib import Path

from raq.experiment.schema import Ptq
from raq.experiment.sweep import OBSERVER, PER_CHANNEL, PERCENTILE, REDUCE_RANGE, SEED, SIZE, Config
from raq.experiment.training import Qat
from raq.stages.call import Call
from raq.store.files import read_json


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


def chosen_settings(call: Call) -> Qat:
    """The training that the sweep before a stage qat has chosen."""
    config = read_json(Path(call.inputs["sweep"]) / "record.json")["results"]["choice"]["config"]
    return Qat.model_validate({**call.settings["qat"], **config})
