"""What a candidate answered on the test split, read back from its stage's files: classes, or scores. Neither torch nor
ray."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from raq.errors import UserError
from raq.experiment.metric import Metric
from raq.report.paired import (
    Paired,
    PairedAnswers,
    PairedResamples,
    PairedScores,
    mean_interval,
    paired_answers,
    set_interval,
)
from raq.statistics import Interval, discordant, proportion_interval
from raq.store.files import Record
from raq.store.local import Store, read_run
from raq.store.opening import store_of

PREDICTIONS, SCORES = "predictions.npy", "scores.npy"
MAX_FILE_BYTES = 4_000_000_000
AGAIN = "delete its folder and run again"


@dataclass(frozen=True)
class Answers:
    """Of one candidate. values: of top-1 int [2, N], the predicted classes and the samples' own; of another metric the
    score of each sample [N], or, if resampled, the metric and what it is on resampled sets; samples: how many."""

    metric: Metric
    values: npt.NDArray[Any]
    resampled: bool
    samples: int

    @property
    def scale(self) -> float:
        """What a share is multiplied by, so that differences are points."""
        return 100.0 if self.metric.in_points else 1.0

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Of top-1: which samples are right, bool [N]."""
        found: npt.NDArray[np.bool_] = self.values[0] == self.values[1]
        return found

    @property
    def value(self) -> float:
        """The metric; a share as a share."""
        if self.metric.is_top1:
            return float(self.right.mean())
        return float(self.values[0] if self.resampled else self.values.mean())

    def interval(self) -> Interval:
        """Of the value."""
        if self.metric.is_top1:
            return proportion_interval(int(self.right.sum()), self.samples)
        if self.is_binary:
            return proportion_interval(int(self.values.sum()), self.samples)
        return set_interval(self.values, self.samples) if self.resampled else mean_interval(self.values)

    @property
    def is_binary(self) -> bool:
        """Whether every sample's score is 0 or 1, which is counted like right and wrong answers."""
        return not self.resampled and bool(np.isin(self.values, (0.0, 1.0)).all())

    def same_samples(self, other: "Answers") -> bool:
        """Whether both were asked the same, as far as can be seen."""
        own, others = ((a.metric, a.resampled, a.samples, a.values.shape) for a in (self, other))
        if own != others:
            return False
        return not self.metric.is_top1 or np.array_equal(self.values[1], other.values[1])

    def worse_than(self, baseline: "Answers") -> Paired | None:
        """By how much, on the same samples; None if they are not the same."""
        if not self.same_samples(baseline):
            return None
        if self.metric.is_top1:
            return paired_answers(baseline.right, self.right)
        if self.is_binary and baseline.is_binary:
            one, other = (baseline, self) if self.metric.greater_is_better else (self, baseline)
            lost, won = discordant(one.values > 0, other.values > 0)
            return PairedAnswers(lost, won, self.samples, self.scale)
        sign = self.scale if self.metric.greater_is_better else -self.scale
        worse = sign * (baseline.values - self.values)
        return PairedResamples(worse, self.samples) if self.resampled else PairedScores(worse)


def read_answers_of_run(run_folder: Path) -> dict[str, Answers | None]:
    """By candidate; None if it is not evaluated. UserError if a file does not belong to its record."""
    run, store = read_run(run_folder), store_of(run_folder)
    return {
        name.removeprefix("evaluate/"): _answers(store, store.read(stage["kind"], stage["fingerprint"]))
        for name, stage in run["stages"].items()
        if name.startswith("evaluate/")
    }


def _answers(store: Store, record: Record | None) -> Answers | None:
    if record is None:
        return None
    results = record["results"]
    if results.get("metric") is None:
        return _predictions(store, record)
    path = store.file(record, SCORES)
    try:
        metric = Metric.model_validate(results["metric"])
    except ValidationError:
        raise UserError(f"{path}: its record names a metric that is none", AGAIN) from None
    values, resampled = _load(path), bool(results["resampled"])
    known = np.isfinite(values[:1] if resampled else values).all() and not np.isinf(values).any()
    if values.ndim != 1 or not known or (not resampled and len(values) != results["test_images"]):
        raise UserError(f"{path}: scores of shape {list(values.shape)} are not those of its record", AGAIN)
    found = Answers(metric, values, resampled, results["test_images"])
    if len(values) < 2 or not math.isclose(found.value, results["value"], rel_tol=1e-6, abs_tol=1e-12):
        raise UserError(f"{path}: its scores come to {found.value}, and its record says {results['value']}", AGAIN)
    return found


def _load(path: Path) -> npt.NDArray[Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("larger than any test split")
        values: npt.NDArray[Any] = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable: {error}", AGAIN) from None
    return values


def _predictions(store: Store, record: Record) -> Answers:
    path, results = store.file(record, PREDICTIONS), record["results"]
    predictions = _load(path)
    if predictions.shape != (2, results["test_images"]):
        raise UserError(f"{path}: predictions of shape {list(predictions.shape)}", AGAIN)
    right = int((predictions[0] == predictions[1]).sum())
    if right != results["correct"] or not math.isclose(results["top1"], right / results["test_images"]):
        raise UserError(
            f"{path}: {right} of {results['test_images']} predictions are right, and the record beside it says "
            f"{results['correct']} and top-1 {results['top1']}",
            AGAIN,
        )
    return Answers(Metric(), predictions, False, results["test_images"])
