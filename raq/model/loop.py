"""One epoch of a training: its batches, its steps, what it gives back. Must not import ray.

Whatever the number of workers, a step sees the same global batch with the same random draws: rank r of w takes
every w-th image of it from the r-th on, and gradients are averaged over all of its images.
"""

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raq.errors import StageError
from raq.experiment.training import Optimisation
from raq.model.augmentation import crop_and_flip, draw, flips_of, normalise
from raq.model.averaging import WeightAverage
from raq.model.batch import Batch, in_batches
from raq.model.batch_norm import average_statistics, synchronise_batch_norm
from raq.model.cache import Array
from raq.model.checkpoints import LOWER_LR, BestEpoch, Metrics, TrainingCheckpoint, TrainingContext
from raq.model.compute import Compute
from raq.model.dataset import Dataset
from raq.model.image_batches import normalisation_tensors, take_batch
from raq.model.images import ImageDataset
from raq.model.inputs import copies
from raq.model.losses import Loss
from raq.model.metrics import Scorer
from raq.model.schedules import image_side

PROGRESS_EVERY_S = 1.0
LossOf = Callable[[tuple[Tensor, ...], Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Hooks:
    """What quantization-aware training adds to the loop."""

    set_mode: Callable[[bool], None] | None = None
    """Switches the model between training (True) and evaluation; None: `model.train`, which exported graphs refuse."""
    before_step: Callable[[float], None] = lambda epochs_done: None
    """Called with the (fractional) epochs done: freezes observers and batch normalisation."""
    synchronise: Callable[[], None] = lambda: None
    """Called on every rank when an epoch ends and `world_size` is above 1: makes ranges equal across ranks."""
    optimizer: Callable[[], torch.optim.Optimizer] | None = None
    """Makes the optimizer, once the model is on its device; None: `schedules.new_optimizer`."""
    counts_start: bool = False
    """Whether what training begins with is a candidate for the best epoch."""
    loss: LossOf | None = None
    """Of (inputs, outputs, loss by sample [n]), the loss by sample to train on instead."""


NO_HOOKS = Hooks()


@dataclass(frozen=True)
class Task:
    """What a network is trained with, and judged by. loss: by sample."""

    loss: Loss
    scorer: Scorer


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy (which takes 32 bits) and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@dataclass(frozen=True)
class Loop:
    """One training's fixed parts."""

    model: nn.Module
    replica: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    dataset: Dataset
    task: Task
    settings: Optimisation
    seed: int
    context: TrainingContext
    hooks: Hooks
    steps: int
    compute: Compute
    average: WeightAverage | None

    def checkpoint(self, history: list[Metrics], best: BestEpoch) -> TrainingCheckpoint:
        """All that the training needs to go on from here."""
        average = None if self.average is None else self.average.as_state()
        states = self.model.state_dict(), self.optimizer.state_dict(), self.schedule.state_dict()
        return TrainingCheckpoint(history, best, *states, average)

    def epoch(self, epoch: int, set_mode: Callable[[bool], object]) -> Metrics:
        """One pass over the training images; returns its row of the history.

        Leaves the model in evaluation mode, its running statistics and their averages the means over all ranks.
        """
        set_mode(True)
        row = self._pass(epoch)
        set_mode(False)
        average_statistics(self.model.named_buffers(), self.context)
        if self.average is not None:
            average_statistics(self.average.state.items(), self.context)
        return row

    def _pass(self, epoch: int) -> Metrics:
        context, size = self.context, self.dataset.size("train")
        # what the network draws (dropout; Python's and NumPy's too, if it uses those): the same after a restart
        seed_everything((self.seed * 1_000_003 + epoch) * 1_009 + context.rank)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(size, generator=generator)
        losses = torch.zeros(2, dtype=torch.float64, device=context.device)  # sum of losses, images
        started = shown = time.perf_counter()
        parts = in_batches(order.numpy(), self.settings.samples_per_step)[: self.steps]
        batches = self._batches(epoch, parts, generator)
        for step, chosen in enumerate(parts):
            self.hooks.before_step(epoch + step / self.steps)
            mine, (inputs, targets) = chosen[context.rank :: context.world_size], next(batches)
            inputs = self.compute.inputs(inputs)
            given = inputs if self.hooks.loss is None else copies(inputs)  # the loss reads them too
            with self.compute.arithmetic(context.device):
                outputs = self.replica(*given)
            outputs = outputs.float() if self.compute.precision != "float32" else outputs
            by_sample = self.task.loss(outputs, targets)
            loss = (by_sample if self.hooks.loss is None else self.hooks.loss(inputs, outputs, by_sample)).sum()
            self.optimizer.zero_grad(set_to_none=True)
            # DDP averages over ranks; this makes that the mean over the global batch, whoever holds how many
            (loss * (context.world_size / len(chosen))).backward()
            self.optimizer.step()
            self.schedule.step()
            if self.average is not None:
                self.average.step()
            losses += torch.stack([loss.detach().double(), torch.tensor(float(len(mine)), device=loss.device).double()])
            now = time.perf_counter()
            if context.rank == 0 and (now - shown > PROGRESS_EVERY_S or (step == 0 and epoch == 0)):
                shown = now
                context.progress(self._progress_row(epoch, step + 1, losses, now - started))
        if context.world_size > 1:
            dist.all_reduce(losses)
        mean_loss = float(losses[0] / losses[1])
        if not math.isfinite(mean_loss):
            raise StageError(f"the loss of epoch {epoch + 1} is {mean_loss}", LOWER_LR)
        duration = time.perf_counter() - started
        return {
            "epoch": epoch,
            "loss": mean_loss,
            "side": self._side(epoch),
            "lr": self.schedule.get_last_lr()[0],
            "duration_s": duration,
            "images_per_s": float(losses[1]) / duration,
            "workers": context.world_size,
            **asdict(self.compute),
        }

    def _side(self, epoch: int) -> int | None:
        """The side of this epoch's images, in pixels; None where data are no images."""
        if not isinstance(self.dataset, ImageDataset):
            return None
        whole = self.dataset.train_images.shape[-1]
        return image_side(self.settings.progressive or (), epoch, self.settings.epochs, whole)

    def _batches(self, epoch: int, parts: list[Array], generator: torch.Generator) -> Iterator[Batch]:
        """This rank's part of each global batch; images are augmented and scaled."""
        rank, world_size, device = self.context.rank, self.context.world_size, self.context.device
        dataset = self.dataset
        if not isinstance(dataset, ImageDataset):
            yield from dataset.batches("train", [part[rank::world_size] for part in parts], device)
            return
        scaled_side, padding = self._side(epoch), dataset.train_images.shape[-1] // 8
        mean, std = normalisation_tensors(dataset.mean, dataset.std, device)
        flips = flips_of(epoch, len(dataset.train_labels), self.seed)
        for part in parts:
            draws = draw(flips[part], padding, generator) if self.settings.augment else None
            images, labels = take_batch(dataset.train_images, dataset.train_labels, part[rank::world_size], device)
            if draws is not None:
                images = crop_and_flip(images, draws.part(rank, world_size), padding)
            yield Batch((normalise(images, mean, std, scaled_side),), labels)

    def _progress_row(self, epoch: int, steps: int, losses: Tensor, elapsed_s: float) -> Metrics:
        done = (epoch * self.steps + steps) / (self.steps * self.settings.epochs)
        speed = float(losses[1]) * self.context.world_size / elapsed_s
        return {
            "epoch": epoch + 1,
            "epochs": self.settings.epochs,
            "share": done,
            "loss": float(losses[0] / losses[1]),
            "images_per_s": speed,
        }


def same_everywhere(model: nn.Module, context: TrainingContext) -> None:
    """Give every rank the parameters and buffers of rank 0, in place."""
    if context.world_size == 1:
        return
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.numel():
                dist.broadcast(tensor.data, 0)


def distributed(model: nn.Module, context: TrainingContext) -> nn.Module:
    """The model in DistributedDataParallel, batch normalisation over all workers' images.

    Buffers are not broadcast: that would keep rank 0's statistics alone.
    """
    if context.world_size == 1:
        return model
    synchronise_batch_norm(model, context.device)
    devices = [context.device.index or 0] if context.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
