"""What all sweeps keep of their trials, and where: outside the stage's own folder, by what they depend on.

Torch is imported inside the functions; never ray.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import Field

from raq.errors import UserError
from raq.experiment.metric import Metric
from raq.stages.call import Call, Progress, trials_folder
from raq.stages.inputs import read_dataset, scorer
from raq.store.files import atomic_write
from raq.store.settings import JudgedSettings
from raq.store.sweep_results import with_written_names
from raq.store.views import View, view_file
from raq.sweep.answers import Answers

if TYPE_CHECKING:
    from torch import nn

    from raq.model.metrics import Scores

K = TypeVar("K")
V = TypeVar("V")
CONFIG, BASELINE = "config", "baseline.npy"
TABLE = "trials"


class Judged(View):
    """What every trial's own record has. value: the metric on the validation samples; images: how many; correct: of
    right and wrong answers; resampled: whether the metric is one of the whole set."""

    images: int = Field(ge=1)
    value: float
    correct: int | None
    resampled: bool


def evaluate_baseline(call: Call, network: "nn.Module", progress: Progress) -> None:
    """FP32's scores of the validation samples, in the trials' folder; what is there stays."""
    from raq.model.evaluation import score

    path = trials_folder(call) / BASELINE
    if not path.is_file():
        progress({"text": "evaluating FP32"})
        dataset = read_dataset(call)
        every = np.arange(dataset.size("validation"))
        save_scores(path, score(network, dataset, scorer(call), every, split="validation"))


def save_scores(path: Path, scores: "Scores") -> None:
    """Keep scores in a file; StageError if some are not finite, of which no trial could be compared."""
    scores.refuse_not_finite("validation")
    with atomic_write(path) as scratch:
        np.save(scratch, scores.values)


def keep_answers(call: Call, record: Path, scores: "Scores", samples: int) -> dict[str, Any]:
    """Keep a trial's scores beside its record; what that says of them, as `Judged`."""
    save_scores(record.with_suffix(".npy"), scores)
    answers = Answers(metric_of(call), scores.values, scores.resampled, samples)
    correct = int(answers.right.sum()) if answers.metric.is_top1 else None
    return {"images": samples, "value": answers.value, "correct": correct, "resampled": scores.resampled}


def reported(trial: Judged, metric: Metric, *left_out: str) -> dict[str, Any]:
    """A trial as the stage's record, its table and Tune have it, but the keys that are left out."""
    kept = trial.model_dump(exclude={"resampled", *left_out, *(() if metric.is_top1 else ("correct",))})
    return with_written_names(kept, metric)


def metric_of(call: Call) -> Metric:
    """What trials are judged by."""
    return call.read(JudgedSettings).metric


def columns_of(metric: Metric) -> tuple[str, ...]:
    """What a trial's row in the table says of its scores."""
    return ("top1", "correct", "images") if metric.is_top1 else ("value", "images")


def read_baseline(call: Call, samples: int) -> Answers:
    """FP32's scores, of so many validation samples."""
    metric = metric_of(call)
    values = np.load(trials_folder(call) / BASELINE, allow_pickle=False)
    return Answers(metric, values, metric.per == "set", samples)


def read_answers(call: Call, record: Path) -> Answers | None:
    """The scores of a finished trial; None if it, or they, are not there or damaged: then it is done again."""
    try:
        known = view_file(Judged, record)
        values = np.load(record.with_suffix(".npy"), allow_pickle=False)
        whole = values.ndim == 1 and (known.resampled or len(values) == known.images)
        return Answers(metric_of(call), values, known.resampled, known.images) if whole else None
    except (OSError, ValueError, EOFError, UserError):
        return None


def keep_one(make: Callable[[K], V]) -> Callable[[K], V]:
    """A function of a hashable key that keeps its last result; it lets go of that before it makes another one.

    What a process reads for many trials is large: two of them at once may be more than there is room for.
    """
    kept: dict[K, V] = {}

    @wraps(make)
    def known_or_made(key: K) -> V:
        if key not in kept:
            kept.clear()
            kept[key] = make(key)
        return kept[key]

    return known_or_made


def plain_text(value: Any) -> Any:
    """A value of a table as text that moves no cursor and that no spreadsheet takes for a formula; others as they are.

    Texts are the user's, or of errors.
    """
    if not isinstance(value, str):
        return value
    text = "".join(letter if letter.isprintable() else " " if letter in "\n\t" else "?" for letter in value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def write_table(folder: Path, trials: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """trials.csv and trials.parquet: a row a trial, config columns `config/<key>`, then the columns named."""
    import pandas as pd

    rows = [
        {f"config/{key}": value for key, value in trial[CONFIG].items()} | {name: trial.get(name) for name in columns}
        for trial in trials
    ]
    table = pd.DataFrame(rows)
    table.map(plain_text).to_csv(folder / f"{TABLE}.csv", index=False)
    table.to_parquet(folder / f"{TABLE}.parquet", index=False)
