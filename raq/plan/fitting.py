"""An experiment as its data allow it: what defaults ask for and the data do not have is left out, and said.

Neither torch nor ray.
"""

from typing import Any

from raq.errors import UserError
from raq.experiment.metric import loss_of
from raq.experiment.schema import Experiment
from raq.experiment.sweep import Sweep
from raq.experiment.training import TO_FP32, Qat
from raq.plan.facts import DataFound
from raq.statistics.proportions import drop_interval

MARGIN_SHARE, SWEEP_SHARE = 0.3, 0.5
MAX_SAMPLES = 20_000
IMAGES_ONLY = {"augment": False, "progressive": ()}  # keys of trainings that are about images


def fit_to_data(experiment: Experiment, found: DataFound) -> tuple[Experiment, tuple[str, ...]]:
    """The experiment, and what is otherwise than its defaults, a sentence each.

    Raises UserError for what the file asks for and these data, or this metric, cannot give.
    """
    if experiment.metric.needs_classes and found.classes is None:
        raise UserError(
            f"metric {experiment.metric.function} is about classes, and the data say not how many there are",
            "give raq.Data(classes=...), a number or their names, or another metric",
        )
    notes = _too_few_samples(experiment, found)
    experiment = _start(experiment)
    experiment = _without_training(experiment, found, notes)
    experiment = _sweep_drop(_margin(_calibration(experiment, found, notes)))
    if found.image_shape is None:
        experiment = _without_image_keys(experiment)
    return _trainings(experiment, found), tuple(notes)


def _learns_from_no_targets(qat: Qat, sweep: Sweep | None) -> bool:
    """Whether QAT, and every training of its sweep, learns from the FP32 network alone."""
    tried = sweep.qat.space.get("distillation") if sweep is not None and sweep.qat is not None else None
    return qat.share_distilled == 1 and (tried is None or (isinstance(tried, list) and set(tried) == {1}))


def _start(experiment: Experiment) -> Experiment:
    """QAT starts from FP32, unless told otherwise, where a sweep tries keys of that start."""
    qat, sweep = experiment.qat, experiment.sweep
    if qat is None or sweep is None or sweep.qat is None or "start" in qat.model_fields_set:
        return experiment
    if not set(sweep.qat.space) & set(TO_FP32):
        return experiment
    return experiment.model_copy(update={"qat": qat.model_copy(update={"start": "fp32"})})


def _trainings(experiment: Experiment, found: DataFound) -> Experiment:
    """What `train` and `qat` leave to the data, as these data are."""
    count, digits = found.train_images, experiment.data.name == "digits"
    parts: dict[str, Any] = {"train": experiment.train.for_samples(count, digits=digits)}
    if experiment.qat is not None:
        parts["qat"] = experiment.qat.for_samples(count, digits=digits)
    return experiment.model_copy(update=parts)


def _too_few_samples(experiment: Experiment, found: DataFound) -> list[str]:
    """That so few test samples could not show that nothing more than max_drop is lost, even by equal answers."""
    most, samples = experiment.require.max_drop, found.test_images
    if experiment.metric.function not in ("top1", "top5") or drop_interval(0, 0, samples)[1] <= most:
        return []
    enough = next((n for n in range(samples, MAX_SAMPLES, 10) if drop_interval(0, 0, n)[1] <= most), None)
    more = f"{enough} would do" if enough is not None else f"not even {MAX_SAMPLES} would do"
    return [
        f"{samples} test samples cannot show that at most {most:g} points are lost, even if all answers are the same: "
        f"{more} (or raise require.max_drop)"
    ]


def _without_training(experiment: Experiment, found: DataFound, notes: list[str]) -> Experiment:
    """What trains, left out or refused where there is nothing to train on, or no loss to train with."""
    loss = loss_of(experiment.metric, experiment.loss)
    if found.train_images and loss is not None:
        return experiment
    why = "the data have no training split" if not found.train_images else (
        f"the metric {experiment.metric.function} has no loss of its own, and loss is null"
    )  # fmt: skip
    if experiment.model.weights is None:
        raise UserError(
            f"{why}, and model.weights is null: nothing can train the network",
            "set model.weights to a file, or to included if the model's function returns a trained network"
            if not found.train_images
            else "set loss, or model.weights",
        )
    if found.train_images and experiment.qat is not None and _learns_from_no_targets(experiment.qat, experiment.sweep):
        return experiment  # what FP32 gives is what it trains on
    if experiment.sweep is not None and not found.train_images:
        raise UserError(f"{why}, of whose images sweep holds some out to compare its trials on", "leave sweep out")
    if experiment.qat is None:
        return experiment
    if "qat" in experiment.model_fields_set:
        more = "" if not found.train_images else ", or qat.distillation to 1, which needs no targets"
        raise UserError(f"qat is asked for, and {why}", f"set qat to null{more}")
    notes.append(f"qat is left out: {why}")
    return experiment.model_copy(update={"qat": None})


def _margin(experiment: Experiment) -> Experiment:
    """What counts as equivalent in the unit of a metric that is no share: 0.3 of max_drop, unless the file says it."""
    margin = experiment.select.margin
    written = "select" in experiment.model_fields_set and "margin" in experiment.select.model_fields_set
    if experiment.metric.in_points or (written and "accuracy" in margin.model_fields_set):
        return experiment
    own = margin.model_copy(update={"accuracy": MARGIN_SHARE * experiment.require.max_drop})
    return experiment.model_copy(update={"select": experiment.select.model_copy(update={"margin": own})})


def _sweep_drop(experiment: Experiment) -> Experiment:
    """What a configuration of `sweep.layers` may lose, in the unit of a metric that is no share: half of max_drop."""
    sweep = experiment.sweep
    if sweep is None or experiment.metric.in_points or "max_drop" in sweep.select.model_fields_set:
        return experiment
    own = sweep.select.model_copy(update={"max_drop": SWEEP_SHARE * experiment.require.max_drop})
    return experiment.model_copy(update={"sweep": sweep.model_copy(update={"select": own})})


def _calibration(experiment: Experiment, found: DataFound, notes: list[str]) -> Experiment:
    """As many calibration samples as there are, where the file names no number."""
    ptq = experiment.ptq
    if ptq is None or ptq.calibration.size <= found.calibration_images:
        return experiment
    written = "ptq" in experiment.model_fields_set and "calibration" in ptq.model_fields_set
    if written and "size" in ptq.calibration.model_fields_set:
        return experiment  # which is refused
    notes.append(f"ptq.calibration.size is {found.calibration_images}: all the samples that there are")
    calibration = ptq.calibration.model_copy(update={"size": found.calibration_images})
    return experiment.model_copy(update={"ptq": ptq.model_copy(update={"calibration": calibration})})


def _without_image_keys(experiment: Experiment) -> Experiment:
    """Without what is done to images; UserError where the file asks for it."""
    qat = experiment.qat
    if qat is not None and "qat" in experiment.model_fields_set and "augment" in qat.model_fields_set and qat.augment:
        raise UserError("qat.augment flips and crops images, and these data are none", "leave it out")
    parts: dict[str, Any] = {"train": experiment.train.model_copy(update=IMAGES_ONLY)}
    if qat is not None:
        parts["qat"] = qat.model_copy(update=IMAGES_ONLY)
    return experiment.model_copy(update=parts)
