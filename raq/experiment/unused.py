"""Keys that would be read by nothing: of an observer that does not watch, of a loss that is not learned from."""

from raq.experiment.ptq import Calibration, Ptq
from raq.experiment.sweep import Sweep
from raq.experiment.training import Qat


def refuse_unused(ptq: Ptq | None, qat: Qat | None, sweep: Sweep | None) -> None:
    """ValueError if a key other than by default belongs to what is neither done nor tried."""
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
        if qat.temperature != Qat().temperature and not qat.share_distilled and "distillation" not in space:
            raise ValueError(
                "qat.temperature is of distillation, and this training learns from targets alone: set "
                "qat.distillation above 0, or leave temperature out"
            )
