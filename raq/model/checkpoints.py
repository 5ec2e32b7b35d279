"""Where a training stands and what it came to: what a launcher supplies, checkpoints, the result on disk."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

CHECKPOINT = "training.pt"
LOWER_LR = "lower the learning rate (lr; where QAT starts from ptq, weight_lr and scale_lr)"
Metrics = dict[str, Any]


class TrainingContext(Protocol):
    """What a launcher supplies to the loop."""

    rank: int
    world_size: int
    device: torch.device

    def progress(self, metrics: Metrics) -> None:
        """Show where training stands; cheap, called by rank 0 about once a second."""

    def save(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """End of an epoch; every rank calls it. Rank 0 stores what `write(folder)` writes, whole or not at all."""

    def restore(self) -> Path | None:
        """The folder that an earlier, interrupted run of this same training saved last, or None."""


@dataclass(frozen=True)
class TrainingResult:
    """history: a row an epoch; state: the best epoch's state dict, on the CPU (the last epoch's without a hold-out).

    best_epoch: from 0; -1: no epoch was as good as what training began with, which is the state.
    """

    history: list[Metrics]
    best_epoch: int
    state: dict[str, Tensor]


@dataclass(frozen=True)
class BestEpoch:
    """The epoch with the highest top-1 on the validation images so far; score: that, None without a hold-out."""

    epoch: int
    score: float | None
    state: dict[str, Tensor]


@dataclass(frozen=True)
class TrainingCheckpoint:
    """All that a training needs to go on after an epoch: its history, and the states of what it trains with."""

    history: list[Metrics]
    best: BestEpoch
    model: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    average: dict[str, Tensor] | None = None

    def write(self, folder: Path) -> None:
        """Write it into this folder."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        torch.save(
            own | {"best": {each.name: getattr(self.best, each.name) for each in fields(self.best)}},
            folder / CHECKPOINT,
        )


def read_checkpoint(folder: Path, device: torch.device) -> TrainingCheckpoint:
    """What `TrainingCheckpoint.write` wrote there."""
    content = torch.load(folder / CHECKPOINT, map_location=device, weights_only=True)
    return TrainingCheckpoint(**{**content, "best": BestEpoch(**content["best"])})


def read_result(folder: Path) -> TrainingResult:
    """The result of a training so far, out of the folder of its last checkpoint, or of what `keep_result` kept."""
    content = torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
    return TrainingResult(content["history"], content["best"]["epoch"], content["best"]["state"])


def keep_result(result: TrainingResult, path: Path) -> None:
    """Keep what a finished training came to, without what would be needed to go on with it."""
    torch.save({"history": result.history, "best": {"epoch": result.best_epoch, "state": result.state}}, path)


class LocalContext:
    """A context for one process: checkpoints go to `folder`, the last one only, each put there by a rename."""

    rank = 0
    world_size = 1

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        progress: Callable[[Metrics], None] = lambda metrics: None,
        saved: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        """progress: takes what is to be shown; saved: is given the folder when a checkpoint is in it."""
        self.folder = folder
        self.saved = saved
        self.device = torch.device(device)
        self.show = progress

    def progress(self, metrics: Metrics) -> None:
        """Hand it to the function given."""
        self.show(metrics)

    def save(self, metrics: Metrics, write: Callable[[Path], None]) -> None:
        """Write the checkpoint beside the last one, then rename it over that."""
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / "new"
        scratch.mkdir(exist_ok=True)
        write(scratch)
        for file in scratch.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
            file.replace(self.folder / file.name)
        self.saved(self.folder)
        self.progress({"epoch_done": metrics})

    def restore(self) -> Path | None:
        """The folder, if a checkpoint is in it."""
        return self.folder if (self.folder / CHECKPOINT).is_file() else None
