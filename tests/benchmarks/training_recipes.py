"""Work against accuracy of the recipes `fast` and `published` on CIFAR-10: resnet18-cifar; and `fast` without a piece.

What a piece is worth is tried with resnet20-cifar, of which two cores can train two seeds of every key.

    uv run python tests/benchmarks/training_recipes.py curve NAME --root FOLDER --work W   (again to go on after an end)
    uv run python tests/benchmarks/training_recipes.py so-far NAME --root FOLDER --work W  (beside it, or after an end)
    uv run python tests/benchmarks/training_recipes.py ablation --root FOLDER --work W [--seeds 2]

Work is in epochs of full-size images: one of half the side is a quarter. Records go to
results/reference/training_recipes/.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raq.environment import environment
from raq.experiment.schema import Data
from raq.experiment.training import Train
from raq.model.checkpoints import LocalContext, TrainingResult, read_result
from raq.model.dataset import Dataset, load_dataset
from raq.model.evaluation import logits
from raq.model.loop import Task, seed_everything
from raq.model.losses import loss_by_sample
from raq.model.training import train
from raq.model.zoo import build_model
from raq.statistics.proportions import proportion_interval
from raq.store.files import now, read_json, write_json
from tests.networks import TOP1

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "training_recipes"
CURVES: dict[str, dict[str, Any]] = {
    "fast-3": {"epochs": 3},
    "fast-5": {"epochs": 5},
    "fast-9": {"epochs": 9},
    "published": {"recipe": "published", "precision": None, "channels_last": None},
}
SMALL: dict[str, Any] = {
    "epochs": 4, "precision": "float32", "channels_last": True, "progressive": [0.5, 0.75, 1.0],
}  # fmt: skip
SMALL_IMAGES = 10_000
NETWORK, SMALL_NETWORK = "resnet18-cifar", "resnet20-cifar"
OTHERWISE: dict[str, dict[str, Any]] = {  # channels_last and precision concern speed, which a training measures itself
    "fast": {},
    "augment: false": {"augment": False},
    "average: 0.05": {"average": 0.05},
    "progressive: []": {"progressive": []},
    "batch_norm_samples: 0": {"batch_norm_samples": 0},
    "schedule: cosine": {"schedule": "cosine"},
    "label_smoothing: 0": {"label_smoothing": 0.0},
    "weight_decay: 0": {"weight_decay": 0.0},
    "nesterov: false": {"nesterov": False},
}


def top1(name: str, result: TrainingResult, dataset: Dataset) -> list[bool]:
    """Whether each test image is answered rightly by the network so called, as trained."""
    network = build_model(name, 10)
    network.load_state_dict(result.state)
    truth = dataset.labels("test")
    answers = logits(network.eval(), dataset, np.arange(len(truth))).argmax(1)
    return (answers == truth).tolist()  # type: ignore[no-any-return]


def train_with(network: str, keys: dict[str, Any], dataset: Dataset, seed: int, folder: Path) -> TrainingResult:
    """Train, from where it stands."""
    seed_everything(seed)
    settings = Train.model_validate(keys)
    task = Task(loss_by_sample("cross_entropy", settings.label_smoothing, None), TOP1.scorer)
    context = LocalContext(folder, progress=lambda m: print(m["epoch_done"], flush=True) if "epoch_done" in m else None)
    return train(build_model(network, 10), dataset, task, settings, seed, context)


def row_of(name: str, network: str, result: TrainingResult, dataset: Dataset, threads: int) -> dict[str, Any]:
    """What a training came to."""
    right, side = top1(network, result, dataset), dataset.inputs[0].shape[-1]
    interval = list(proportion_interval(sum(right), len(right)))
    return {
        "name": name, "top1": statistics.fmean(right), "top1_interval": interval,
        "work": sum((row["side"] / side) ** 2 for row in result.history), "threads": threads,
        "seconds": sum(row["duration_s"] for row in result.history), "history": result.history,
    }  # fmt: skip


def keep(record: str, dataset: Dataset, **content: Any) -> None:
    """Write a record."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    counts = {"train_images": dataset.size("train"), "test_images": dataset.size("test")}
    write_json(REFERENCE / f"{record}.json", {"measured_at": now(), "environment": environment(), **counts, **content})


def ablation(data: Dataset, work: Path, seeds: int, threads: int) -> None:
    """`fast` and `fast` with one key otherwise, each with so many seeds."""
    rows = []
    for name, keys in OTHERWISE.items():
        found, seconds = [], []
        for seed in range(seeds):
            done = work / f"{name}-{seed}.json".replace(": ", "-")
            if not done.is_file():
                result = train_with(SMALL_NETWORK, {**SMALL, **keys}, data, seed, done.with_suffix(""))
                write_json(done, row_of(name, SMALL_NETWORK, result, data, threads))
            row: Any = read_json(done)
            found.append(row["top1"])
            seconds.append(row["seconds"])
        rows.append({"otherwise": name, "top1": found, "mean": statistics.fmean(found), "seconds": seconds})
        print(rows[-1], flush=True)
        keep("ablation", data, model=SMALL_NETWORK, settings=SMALL, threads=threads, rows=rows)


def main() -> None:
    """Train, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("curve", "so-far", "ablation"))
    parser.add_argument("name", nargs="?", choices=CURVES)
    parser.add_argument("--root", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    small = given.verb == "ablation"
    dataset = load_dataset(Data(name="cifar10", root=given.root, train_limit=SMALL_IMAGES if small else None))
    if small:
        ablation(dataset, given.work, given.seeds, torch.get_num_threads())
        return
    settings = CURVES[given.name]
    folder, name = given.work / given.name, given.name
    if given.verb == "so-far":
        result = read_result(folder)
        name = f"{name}, the best of its first {len(result.history)} epochs"
    else:
        result = train_with(NETWORK, settings, dataset, 0, folder)
    row = row_of(name, NETWORK, result, dataset, torch.get_num_threads())
    keep(given.name, dataset, model=NETWORK, settings=settings, **row)


if __name__ == "__main__":
    main()
