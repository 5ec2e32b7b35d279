"""The training, written once against a small context: FP32 and quantization-aware, one process or many.

Who launches it (a plain process, an actor, Ray Train) supplies the context: rank, device, where checkpoints go. Must
not import ray.
"""

import math
import pickle
from contextlib import nullcontext

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raq.errors import StageError
from raq.experiment.training import Optimisation
from raq.model.averaging import WeightAverage
from raq.model.batch import in_batches
from raq.model.checkpoints import (
    CHECKPOINT,
    BestEpoch,
    Metrics,
    TrainingCheckpoint,
    TrainingContext,
    TrainingResult,
    read_checkpoint,
)
from raq.model.compute import Compute
from raq.model.dataset import Dataset
from raq.model.epochs import begin, end_epoch, refuse_divergence
from raq.model.loop import NO_HOOKS, Hooks, Loop, Task, distributed, same_everywhere
from raq.model.metrics import Scorer
from raq.model.schedules import learning_rate_factor, new_optimizer, steps_per_epoch

VALIDATION_BATCH = 256
START = -1  # as the best epoch: what training began with


def train(
    model: nn.Module,
    dataset: Dataset,
    task: Task,
    settings: Optimisation,
    seed: int,
    context: TrainingContext,
    hooks: Hooks = NO_HOOKS,
) -> TrainingResult:
    """Train `model` in place and return the history and the best epoch's state (of equals, the last one's).

    An interrupted training continues after its last finished epoch. Raises StageError if the loss is no longer finite.
    """
    settings = settings.for_samples(dataset.size("train"))
    model.to(context.device)
    same_everywhere(model, context)
    optimizer = new_optimizer(model, settings) if hooks.optimizer is None else hooks.optimizer()
    steps = steps_per_epoch(dataset.size("train"), settings.samples_per_step, context.world_size)
    total = steps * settings.epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor(settings.schedule, total))
    set_mode, sign = hooks.set_mode or model.train, task.scorer.metric.sign
    found = _restore(context, model, optimizer, schedule)
    history = [] if found is None else found.history
    best = None if found is None else found.best
    begun: Metrics
    if history:
        compute, begun = Compute.of_row(history[-1]), {}
    else:
        compute, begun = begin(model, dataset, task.loss, settings, seed, context, set_mode)
        if hooks.counts_start:
            best = _best_of(None, START, _validate(model, dataset, task.scorer, context, START), model, sign)
    compute.lay_out(model)
    replica = distributed(model, context)
    average = WeightAverage(model, settings.share_averaged * total) if settings.share_averaged else None
    if average is not None and found is not None:
        average.restore(found.average or {})
    parts = (model, replica, optimizer, schedule, dataset, task, settings, seed, context, hooks, steps)
    loop = Loop(*parts, compute, average)
    for epoch in range(len(history), settings.epochs):
        row = loop.epoch(epoch, set_mode)
        with nullcontext() if average is None else average.in_place():
            end_epoch(model, dataset, settings, seed, context, hooks.synchronise)
            score = _validate(model, dataset, task.scorer, context, epoch)
            best = _best_of(best, epoch, score, model, sign)
        row |= {"validation_top1": score if task.scorer.metric.is_top1 else None, "validation": score}
        history.append(row | (begun if epoch == 0 else {}))
        context.save(history[-1], loop.checkpoint(history, best).write)
    assert best is not None
    set_mode(False)
    return TrainingResult(history, best.epoch, best.state)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's state dict, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _best_of(best: BestEpoch | None, epoch: int, score: float | None, model: nn.Module, sign: int) -> BestEpoch:
    """The best epoch so far, or this one if it is as good; without scores the last one."""
    worse = best is not None and score is not None and best.score is not None and sign * score < sign * best.score
    return best if best is not None and worse else BestEpoch(epoch, score, model_state(model))


def _validate(model: nn.Module, dataset: Dataset, scorer: Scorer, context: TrainingContext, epoch: int) -> float | None:
    """The metric of a model in evaluation mode on the hold-out; None without one.

    StageError if it is not finite, or a weight is not.
    """
    refuse_divergence(model, epoch)
    score = _score(model, dataset, scorer, context) if dataset.size("validation") else None
    if score is not None and not math.isfinite(score):
        raise StageError(
            f"the metric is {score} on the validation samples after epoch {epoch + 1}", "see what the network gives"
        )
    return score


def _score(model: nn.Module, dataset: Dataset, scorer: Scorer, context: TrainingContext) -> float:
    """The metric on the hold-out. Each rank takes its part; of a metric of the whole set, every rank takes all."""
    shared = scorer.metric.per == "sample"
    mine = np.arange(dataset.size("validation"))[context.rank if shared else 0 :: context.world_size if shared else 1]
    parts = []
    with torch.no_grad():
        for inputs, targets in dataset.batches("validation", in_batches(mine, VALIDATION_BATCH), context.device):
            parts.append(scorer.of_batch(model(*inputs), targets))
    if not shared:
        return scorer.value_of(parts)
    sums = [float(sum(part.sum() for part in parts)), float(len(mine))]
    counts = torch.tensor(sums, dtype=torch.float64, device=context.device)
    if context.world_size > 1:
        dist.all_reduce(counts)
    return float(counts[0] / counts[1])


def _restore(
    context: TrainingContext,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> TrainingCheckpoint | None:
    """Continue from the last checkpoint, if there is one."""
    folder = context.restore()
    if folder is None:
        return None
    try:
        found = read_checkpoint(folder, context.device)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise StageError(
            f"{folder / CHECKPOINT}: the checkpoint to go on from is damaged: {type(error).__name__}",
            "delete it, or start over with --fresh",
        ) from error
    model.load_state_dict(found.model)
    optimizer.load_state_dict(found.optimizer)
    schedule.load_state_dict(found.schedule)
    return found
