"""Refuses keys that no part of the experiment would read."""

from raq.experiment.ptq import Calibration, Ptq
from raq.experiment.sweep import Sweep
from raq.experiment.training import TO_FP32, Qat


def refuse_unused(ptq: Ptq | None, qat: Qat | None, sweep: Sweep | None) -> None:
    """ValueError if ptq.calibration.percentile is set and no calibration uses it, or qat.temperature and no training
    distils."""
    if ptq is not None:
        tried = sweep.ptq.observers if sweep is not None and sweep.ptq is not None else ()
        observer = ptq.calibration.observer
        if ptq.calibration.percentile != Calibration().percentile and "percentile" not in (observer, *tried):
            raise ValueError(
                "ptq.calibration.percentile is of the observer percentile, and ptq.calibration.observer is "
                f"{observer}: set that to percentile, or leave percentile out"
            )
    if qat is not None:
        space = sweep.qat.space if sweep is not None and sweep.qat is not None else {}
        from_fp32 = any(key in space for key in TO_FP32)
        distils = qat.share_distilled and not (from_fp32 and qat.distillation is None)
        if qat.temperature != Qat().temperature and not distils and "distillation" not in space:
            raise ValueError(
                "qat.temperature is of distillation, and this training learns from targets alone: set "
                "qat.distillation above 0, or leave temperature out"
            )
