"""What the sweep before a stage has chosen: a calibration, the layers that stay in float, a training."""

from raq.experiment.ptq import Ptq
from raq.experiment.sweep import OBSERVER, PER_CHANNEL, PERCENTILE, PTQ_METHODS, REDUCE_RANGE, SEED, SIZE, Config
from raq.experiment.training import Qat
from raq.stages.call import Call
from raq.store.settings import PtqSettings, QatSettings
from raq.store.views import View, view_results


class _Choice(View):
    config: Config


class _SweepResults(View):
    choice: _Choice


class _Configuration(View):
    layers: str


class _LayerChoice(View):
    mixtures: list[_Configuration]


class _LayerSweepResults(View):
    choice: _LayerChoice


def chosen_floats(call: Call) -> list[str]:
    """The layers of this stage's configuration that the sweep before has chosen to stay in float; none without one."""
    number = call.read(PtqSettings).mixture
    if number is None:
        return []
    return view_results(_LayerSweepResults, call.input("layers")).choice.mixtures[number - 1].layers.split()


def chosen_calibration(call: Call) -> tuple[Ptq, int, bool]:
    """How to quantize, the seed of the calibration's sample, and whether ranges are reduced.

    As written, or as the sweep before has chosen.
    """
    asked = call.read(PtqSettings)
    if "sweep" not in call.inputs:
        return asked.ptq, asked.seed, asked.reduce_range
    config = view_results(_SweepResults, call.input("sweep")).choice.config
    return with_config(asked.ptq, config), config[SEED], config[REDUCE_RANGE]


def with_config(settings: Ptq, config: Config) -> Ptq:
    """How a trial of a sweep quantizes."""
    changed = {"size": config[SIZE], "observer": config[OBSERVER]}
    if config[PERCENTILE] is not None:
        changed["percentile"] = config[PERCENTILE]
    calibration = settings.calibration.model_copy(update=changed)
    methods = {key: config[key] for key in PTQ_METHODS if key in config}
    return settings.model_copy(update={"calibration": calibration, "per_channel": config[PER_CHANNEL], **methods})


def chosen_settings(call: Call) -> Qat:
    """The training that the sweep before a stage qat has chosen."""
    config = view_results(_SweepResults, call.input("sweep")).choice.config
    written = call.read(QatSettings).qat.model_dump(mode="json")
    return Qat.model_validate({**written, **config})
