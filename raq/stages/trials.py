"""What all sweeps keep of their trials, and where: outside the stage's own folder, by what they depend on.

Torch is imported inside the functions; never ray.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from raq.errors import UserError
from raq.stages.call import Call, Progress, trials_folder
from raq.stages.inputs import read_dataset
from raq.store.files import atomic_write
from raq.store.views import View, view_file

if TYPE_CHECKING:
    from torch import nn

K = TypeVar("K")
V = TypeVar("V")
CONFIG, BASELINE = "config", "baseline.npy"
TABLE = "trials"


def evaluate_baseline(call: Call, network: "nn.Module", progress: Progress) -> None:
    """FP32's classes of the validation images, in the trials' folder; what is there stays."""
    from raq.model.evaluation import predict

    path = trials_folder(call) / BASELINE
    if not path.is_file():
        progress({"text": "evaluating FP32"})
        with atomic_write(path) as scratch:
            np.save(scratch, predict(network, read_dataset(call), split="validation").astype(np.int32))


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


class _Counted(View):
    images: int


def read_predictions(record: Path) -> Any:
    """The classes that a trial has predicted; None if they are not there or damaged: then it is done again."""
    try:
        found = np.load(record.with_suffix(".npy"), allow_pickle=False)
        return found if len(found) == view_file(_Counted, record).images else None
    except (OSError, ValueError, EOFError, UserError):
        return None


def write_table(folder: Path, trials: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """trials.csv and trials.parquet: a row a trial, config columns `config/<key>`, then the columns named."""
    import pandas as pd

    rows = [
        {f"config/{key}": value for key, value in trial[CONFIG].items()} | {name: trial.get(name) for name in columns}
        for trial in trials
    ]
    table = pd.DataFrame(rows)
    table.to_csv(folder / f"{TABLE}.csv", index=False)
    table.to_parquet(folder / f"{TABLE}.parquet", index=False)
