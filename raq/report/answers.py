"""What a candidate answered on the test split, read back from its stage's files: classes, or scores. Neither torch nor
ray."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from raq.errors import UserError
from raq.experiment.metric import Metric
from raq.store.files import Record
from raq.store.local import Store, read_run
from raq.store.opening import store_of
from raq.sweep.answers import Answers

PREDICTIONS, SCORES = "predictions.npy", "scores.npy"
MAX_FILE_BYTES = 4_000_000_000
AGAIN = "delete its folder and run again"


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
    if predictions.shape != (2, results["test_images"]) or predictions.dtype.kind not in "iu":
        raise UserError(f"{path}: predictions of shape {list(predictions.shape)}, {predictions.dtype}", AGAIN)
    right = int((predictions[0] == predictions[1]).sum())
    if right != results["correct"] or not math.isclose(results["top1"], right / results["test_images"]):
        raise UserError(
            f"{path}: {right} of {results['test_images']} predictions are right, and the record beside it says "
            f"{results['correct']} and top-1 {results['top1']}",
            AGAIN,
        )
    return Answers(Metric(), predictions, False, results["test_images"])
