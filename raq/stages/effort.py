"""The ladder of methods that `ptq.effort` climbs, and who judges how far.

Plain torch, never ray; torch is imported inside the functions.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from raq.errors import StageError
from raq.experiment.fields import Effort, Extent
from raq.sweep.answers import Answers

if TYPE_CHECKING:
    from raq.experiment.ptq import Calibration
    from raq.model.cache import Array
    from raq.model.evaluation import Network
    from raq.model.metrics import Scorer
    from raq.quantize.methods import Made, Methods, Source

LEARNING_STEPS = 200
MAX_JUDGED_BY = 2048  # samples
MAX_JUDGED_BYTES = 512 * 2**20  # of their outputs
JUDGED_PART = 4  # of so many calibration samples one, at least, where none validate
MIN_GAIN_DB = 0.1  # of the SQNR that is compared, for a method to be kept
MIN_GAIN_PAID_DB = 0.5  # for one that takes time at every call
OBSERVERS: tuple[dict[str, Any], ...] = ({"observer": "entropy"}, {"observer": "moving-average"})
FREE: tuple[dict[str, Any], ...] = (*OBSERVERS, {"equalization": "folded"}, {"bias_correction": True})
PAID: tuple[dict[str, Any], ...] = ({"equalization": "all"},)
LADDER: dict[Effort, tuple[dict[str, Any], ...]] = {
    "fast": (), "better": (*FREE, *PAID), "best": (*FREE, {"learned_rounding": LEARNING_STEPS}, *PAID),
}  # fmt: skip
AS_ASKED, EXTENTS = "as asked", get_args(Extent)


@dataclass(frozen=True)
class Judgement:
    """How far a quantized graph is from the network in float.

    sqnr_db: of the outputs, or of the probabilities that they stand for (`Judge`), None: equal; drop: in points or in
    the metric's unit, None without targets.
    """

    sqnr_db: float | None
    drop: float | None
    drop_interval: list[float] | None

    def is_enough(self, enough: float) -> bool:
        """Whether nothing is lost, or the drop's interval ends at `enough` or below.

        Rounding gains nothing: a drop below 0 is chance, and counts as 0 with an interval as wide.
        """
        if self.sqnr_db is None:
            return True
        if self.drop is None or self.drop_interval is None:
            return False
        return self.drop_interval[1] - min(self.drop, 0.0) <= enough

    def is_nearer(self, than: "Judgement", by_db: float = MIN_GAIN_DB) -> bool:
        """Whether its outputs are nearer to those in float, by so much."""
        if self.sqnr_db is None or than.sqnr_db is None:
            return than.sqnr_db is not None
        return self.sqnr_db >= than.sqnr_db + by_db


NOTHING = Judgement(None, None, None)


def _samples_that_fit(source: "Source") -> int:
    """How many samples' outputs take MAX_JUDGED_BYTES."""
    import torch

    from raq.model.inputs import copies

    with torch.inference_mode():
        outputs = source.network(*copies(source.example.inputs))
    return max(1, MAX_JUDGED_BYTES // (4 * int(outputs[0].numel())))


class Judge:
    """Compares quantized graphs with the network in float on samples that rounding is not learned from.

    They are validation samples, whose targets count too; without any, calibration samples, of which outputs alone are
    compared: those that neither calibrate nor teach rounding, but at least a quarter of all, which rounding is then not
    learned from. calibrating: how many of them calibrate too, for want of others.

    Where targets are classes, outputs are compared as probabilities, their softmax over the axis 1: of logits, errors
    count alike whether or not they can change an answer. Of two graphs of EfficientNet-B0 whose logits were at 18.8 and
    18.9 dB, probabilities were at 20.1 and 22.3 dB, and 176 and 117 of 2,048 answers were other ones.
    """

    def __init__(self, source: "Source", scorer: "Scorer") -> None:
        from raq.model.dataset import calibration_indices
        from raq.quantize.methods import MAX_LEARNED_FROM

        source.network.eval()
        dataset, most = source.dataset, min(MAX_JUDGED_BY, _samples_that_fit(source))
        self.dataset, self.split = dataset, "validation" if dataset.size("validation") else "calibration"
        available = dataset.size(self.split)
        every = calibration_indices(available, available, source.seed)
        self.calibrating = 0
        if self.split == "validation":
            self.chosen = every[:most]
        else:
            used = max(source.calibration.size, MAX_LEARNED_FROM)  # the first of them
            apart = max(available - used, available // JUDGED_PART, 1)
            self.chosen = every[-min(apart, most) :]
            self.calibrating = max(0, source.calibration.size - (available - len(self.chosen)))
        self.scorer = scorer if self.split == "validation" else None
        self.compared: Literal["probabilities", "outputs"] = (
            "probabilities" if scorer.metric.needs_classes else "outputs"
        )
        self.outputs, self.answers = self._run(source.network)

    def kept_apart(self, source: "Source") -> "Source":
        """The source with the samples that judge set apart: nothing made of it learns rounding from them."""
        return source if self.split == "validation" else replace(source, judging=self.chosen.tolist())

    def _run(self, network: "Network") -> "tuple[Array, Answers | None]":
        """The outputs for the samples, and what the metric makes of them."""
        from raq.model.evaluation import outputs_and_parts

        outputs, parts = outputs_and_parts(
            network, self.dataset, self.chosen, self.scorer, split=self.split,
            keep=lambda given: given.float().softmax(1) if self.compared == "probabilities" else given.float(),
        )  # fmt: skip
        if self.scorer is None:
            return outputs, None
        scores = self.scorer.together(parts)
        return outputs, Answers(self.scorer.metric, scores.values, scores.resampled, len(self.chosen))

    def judge(self, made: "Made") -> Judgement:
        """Compare this graph."""
        from raq.model.parity import sqnr_db
        from raq.quantize.ptq import simulated

        with simulated(made.prepared) as as_integers:
            outputs, answers = self._run(as_integers)
        worse = answers.worse_than(self.answers) if answers is not None and self.answers is not None else None
        distance = sqnr_db(self.outputs, outputs)
        return Judgement(distance, *((None, None) if worse is None else (worse.value, list(worse.interval()))))


def quantize_by_effort(
    source: "Source",
    asked: "Methods",
    effort: Effort,
    scorer: "Scorer",
    enough: float,
    progress: Callable[[str, float | None], None],
) -> "tuple[Made, dict[str, Any] | None]":
    """The graph by the methods that are asked for, or by those that the ladder ends with; and how it was climbed.

    A method of the ladder is kept if it brings the outputs MIN_GAIN_DB nearer to those in float: the drop of so few
    samples could not tell. What takes time at every call comes last, and has to bring MIN_GAIN_PAID_DB. It ends where
    the drop `is_enough`. The row of a method that cannot be done, of a network without gradients say, tells why. None
    for `fast`.
    """
    from raq.quantize.methods import quantize

    if not LADDER[effort]:
        return quantize(source, asked, progress), None
    judge = Judge(source, scorer)
    source = judge.kept_apart(source)
    best = quantize(source, asked, progress)
    reached = judge.judge(best)
    rows = [_row(AS_ASKED, best, reached, kept=True)]
    for change in LADDER[effort]:
        wanted = replace(best.methods, **change)
        if _is_done(best.methods, wanted, source.calibration):
            continue
        if reached.is_enough(enough):
            break
        step = ", ".join(f"{key}: {str(value).lower()}" for key, value in change.items())
        progress(step, None)
        started = time.perf_counter()
        try:
            made = quantize(source, wanted, progress)
        except StageError as error:  # of this method: what there is stays
            seconds = round(time.perf_counter() - started, 3)
            rows.append({"step": step, "kept": False, "seconds": seconds, **asdict(NOTHING), "error": error.message})
            continue
        found = judge.judge(made)
        kept = found.is_nearer(reached, MIN_GAIN_PAID_DB if change in PAID else MIN_GAIN_DB)
        rows.append(_row(step, made, found, kept=kept))
        if kept:
            best, reached = made, found
    of = {"samples": len(judge.chosen), "split": judge.split, "calibrating": judge.calibrating}
    return best, {"effort": effort, "enough": enough, **of, "compared": judge.compared, "rows": rows}


def _is_done(methods: "Methods", wanted: "Methods", calibration: "Calibration") -> bool:
    """Whether these methods do all of what is wanted, or more, or calibrate in the same way."""
    if wanted.observer != methods.observer:
        return wanted.calibrated_by(calibration) in (calibration, methods.calibrated_by(calibration))
    further = EXTENTS.index(methods.equalization) > EXTENTS.index(wanted.equalization)
    learned = methods.learned_rounding > 0 and methods.learned_rounding != wanted.learned_rounding
    return wanted == methods or further or learned


def _row(step: str, made: "Made", judged: Judgement, *, kept: bool) -> dict[str, Any]:
    return {"step": step, "kept": kept, "seconds": round(made.seconds, 3), **asdict(judged)}
