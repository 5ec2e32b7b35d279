"""What is done to a network before its first epoch, and at the end of each. Must not import ray."""

from collections.abc import Callable

import torch
from torch import nn

from raq.errors import StageError
from raq.experiment.training import Optimisation, Train
from raq.model.batch import Batch
from raq.model.batch_norm import estimate_on
from raq.model.checkpoints import LOWER_LR, Metrics, TrainingContext
from raq.model.compute import Compute, choose
from raq.model.dataset import Dataset, calibration_indices
from raq.model.initialisation import rescale_on
from raq.model.losses import Loss


def begin(
    model: nn.Module,
    dataset: Dataset,
    loss: Loss,
    settings: Optimisation,
    seed: int,
    context: TrainingContext,
    set_mode: Callable[[bool], object],
) -> tuple[Compute, Metrics]:
    """What is done to an untrained network, the same on every rank; how its steps are computed; the first row's part.

    Leaves the model in training mode.
    """
    found: Metrics = {}
    if isinstance(settings, Train) and settings.initialisation == "rescaled":
        found["rescaled_layers"] = rescale_on(model, dataset, loss, settings.samples_per_step, seed, context.device)
    set_mode(True)
    count = dataset.size("train")

    def batch() -> Batch:
        share = max(2, settings.samples_per_step // context.world_size)
        chosen = calibration_indices(count, min(count, share), seed)
        return next(iter(dataset.batches("train", [chosen], context.device)))

    compute, measured = choose(model, settings, count, batch, context)
    return compute, {**found, **measured}


def end_epoch(
    model: nn.Module,
    dataset: Dataset,
    settings: Optimisation,
    seed: int,
    context: TrainingContext,
    synchronise: Callable[[], None],
) -> None:
    """Take running statistics anew, where `settings` want it, and make ranges, by `synchronise`, those of all ranks.

    The model is in evaluation mode. Statistics that are taken anew are the same on all ranks, whose batch norms are
    synchronised then.
    """
    if isinstance(settings, Train) and settings.batch_norm_samples:
        estimate_on(model, dataset, settings, seed, context)
    if context.world_size > 1:
        synchronise()


def refuse_divergence(model: nn.Module, epoch: int) -> None:
    """StageError if a parameter or a running statistic is no longer finite: a loss can be finite beside that."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        # an observer that has seen nothing holds infinite ranges
        observed = name.endswith(("min_val", "max_val"))
        if tensor.is_floating_point() and not observed and not bool(torch.isfinite(tensor).all()):
            raise StageError(f"after epoch {epoch + 1}, {name} is not finite", LOWER_LR)
