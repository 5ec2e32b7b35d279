"""Batch normalisation over the images of all workers, on the CPU; and running statistics taken anew.

torch.nn.SyncBatchNorm needs a GPU. Without it each worker normalises by its own part of the batch, and two workers
train another network than one does (loss curves a few percent apart).
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raq.experiment.training import Train
from raq.model.batch import in_batches
from raq.model.checkpoints import TrainingContext
from raq.model.dataset import Dataset, calibration_indices


def synchronise_batch_norm(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with every batch normalisation over all workers' images; same state dict, same output alone.

    torch's own on a GPU, ours on the CPU. The modules are replaced in place; parameters and buffers are shared.
    """
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(model))
    for name, child in model.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            setattr(model, name, SynchronisedBatchNorm.like(child))
        else:
            synchronise_batch_norm(child, device)
    return model


STATISTICS = ("running_mean", "running_var")


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms of a model that keep running statistics."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]


def estimate_anew(model: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> None:
    """Give a model's batch norms the running statistics of these batches alone, each counting as much as another.

    batches: the network's inputs, tensors [n, ...]. Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, section 3,
    with means of variances by batch. All else is in evaluation mode, in which the model is left; so are norms that
    `model.train()` keeps in it, which a backbone that is held fast may have.
    """
    model.train()
    norms = [norm for norm in batch_norms(model) if norm.training]
    rates = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
        norm.train()
    try:
        with torch.no_grad():
            for inputs in batches:
                model(*inputs)
    finally:
        for norm, rate in zip(norms, rates, strict=True):
            norm.momentum = rate
        model.eval()


def estimate_on(model: nn.Module, dataset: Dataset, settings: Train, seed: int, context: TrainingContext) -> None:
    """`estimate_anew` on `batch_norm_samples` training samples at full size; each rank takes its part of each batch."""
    count, size = dataset.size("train"), settings.samples_per_step
    samples = min(settings.batch_norm_samples, count)
    if samples < 2 * context.world_size or not batch_norms(model):
        return
    parts = in_batches(calibration_indices(count, samples, seed), size)[: max(1, samples // size)]
    mine = [part[context.rank :: context.world_size] for part in parts]
    estimate_anew(model, (batch.inputs for batch in dataset.batches("train", mine, context.device)))


def average_statistics(named: Iterable[tuple[str, Tensor]], context: TrainingContext) -> None:
    """Make running statistics the mean over all ranks: an exported graph normalises by its own rank's images.

    named: tensors by name, in the same order on every rank; others than running statistics are left alone.
    """
    if context.world_size == 1:
        return
    for name, buffer in named:
        if name.endswith(STATISTICS):
            dist.all_reduce(buffer)
            buffer.div_(context.world_size)


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of [N, C, ...] whose training statistics are over all ranks of the default process group."""

    @classmethod
    def like(cls, other: nn.modules.batchnorm._BatchNorm) -> "SynchronisedBatchNorm":
        """One that shares the parameters and buffers of another."""
        new = cls(other.num_features, other.eps, other.momentum, other.affine, other.track_running_stats)
        new._parameters, new._buffers, new.training = other._parameters, other._buffers, other.training
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected [N, C, ...], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise [N, C, ...]; in training, update the running statistics as torch's batch normalisation does."""
        if not self.training:
            return super().forward(input)
        output, mean, variance, count = _SynchronisedNorm.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)
        return cast(Tensor, output)


class _SynchronisedNorm(torch.autograd.Function):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and var over the images of all ranks.

    Backward: dx = weight / std * (dy - mean(dy) - x_hat * mean(dy * x_hat)), the means over all ranks (Ioffe & Szegedy
    2015, section 3); the gradients of weight and bias are this rank's, which DDP averages.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        dims = [0, *range(2, x.dim())]
        count = x.numel() / x.shape[1]
        kept = torch.promote_types(x.dtype, torch.float32)  # of half precision, statistics are float32
        variance, mean = torch.var_mean(x.to(kept), dim=dims, correction=0)
        mean64, variance64 = mean.double(), variance.double()
        sums = torch.cat([mean64 * count, (variance64 + mean64**2) * count, mean64.new_tensor([count])])  # [2C + 1]
        dist.all_reduce(sums)
        total = sums[-1]
        mean64, squares = (sums[:-1] / total).chunk(2)
        mean, variance = mean64.to(kept), (squares - mean64**2).clamp_min_(0).to(kept)
        taken = x.dtype if weight is None else weight.dtype
        output = torch.batch_norm(x, weight, bias, mean.to(taken), variance.to(taken), False, 0.0, eps, False)
        inverse_std = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse_std, total)
        count_of_all = total.to(kept)
        ctx.mark_non_differentiable(mean, variance, count_of_all)
        return output, mean, variance, count_of_all

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std, total = ctx.saved_tensors
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        normalised = (x - mean.view(shape)) * inverse_std.view(shape)
        dy = dy.to(mean.dtype)
        bias_gradient = dy.sum(dim=dims)
        weight_gradient = (dy * normalised).sum(dim=dims)
        sums = torch.cat([bias_gradient, weight_gradient]).double()
        dist.all_reduce(sums)
        mean_dy, mean_dy_normalised = (sums / total).to(mean.dtype).chunk(2)
        scale = inverse_std if weight is None else inverse_std * weight
        dx = (dy - mean_dy.view(shape) - normalised * mean_dy_normalised.view(shape)) * scale.view(shape)
        if weight is None:
            return dx.to(x.dtype), None, None, None
        return dx.to(x.dtype), weight_gradient.to(weight.dtype), bias_gradient.to(weight.dtype), None
