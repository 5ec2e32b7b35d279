"""Activation ranges in distributed QAT: on every rank those that one process would have that sees all images.

A fake quantizer keeps moving averages of each batch's least and greatest value. Each rank sees its own part of a batch.
Covering all ranks' averages at the end of an epoch makes ranges wider the more ranks there are; averaging them makes
them narrower, as parts have less extreme values than the whole. So the step's own extremes are found again from how
the averages moved, reduced over all ranks, and the averages done anew with those of the whole batch.
"""

import torch
import torch.distributed as dist
from torch import Tensor, fx
from torchao.quantization.pt2e import FakeQuantizeBase


class RangeSynchroniser:
    """Called after every step on every rank, it makes the ranges and scales of a prepared graph equal on all of them.

    One tensor is reduced a step: twice as many numbers as there are activations that are quantized. Scales of weights
    are left alone: the weights are the same everywhere.
    """

    def __init__(self, prepared: fx.GraphModule) -> None:
        modules = [module for module in prepared.modules() if isinstance(module, FakeQuantizeBase)]
        self.quantizers = [module for module in modules if not module.is_per_channel]
        self.before = [self._averages(module) for module in self.quantizers]

    @staticmethod
    def _averages(quantizer: FakeQuantizeBase) -> tuple[Tensor, Tensor]:
        observer = quantizer.activation_post_process
        return observer.min_val.clone(), observer.max_val.clone()

    def step(self) -> None:
        """Take in what the ranks saw since the last call; nothing in a process without others."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        seen = [(q, old) for q, old in zip(self.quantizers, self.before, strict=True) if _has_seen(q)]
        if not seen:
            return
        lows = [self._own(q, q.activation_post_process.min_val, old[0]) for q, old in seen]
        highs = [self._own(q, q.activation_post_process.max_val, old[1]) for q, old in seen]
        extremes = torch.stack([*lows, *(-high for high in highs)])  # [2 * quantizers], all to be as low as possible
        dist.all_reduce(extremes, op=dist.ReduceOp.MIN)
        for (quantizer, (low, high)), least, greatest in zip(
            seen, extremes[: len(seen)], -extremes[len(seen) :], strict=True
        ):
            observer = quantizer.activation_post_process
            observer.min_val.copy_(_moved(low, least, observer.averaging_constant).reshape(observer.min_val.shape))
            observer.max_val.copy_(_moved(high, greatest, observer.averaging_constant).reshape(observer.max_val.shape))
            scale, zero_point = observer.calculate_qparams()
            quantizer.scale.copy_(scale)
            quantizer.zero_point.copy_(zero_point)
        self.before = [self._averages(quantizer) for quantizer in self.quantizers]

    @staticmethod
    def _own(quantizer: FakeQuantizeBase, now: Tensor, before: Tensor) -> Tensor:
        """The extreme of this rank's own part of the batch, from how the average moved; a number."""
        now, rate = now.reshape(()), quantizer.activation_post_process.averaging_constant
        if _is_new(before):
            return now
        extreme: Tensor = before.reshape(()) + (now - before.reshape(())) / rate
        return extreme


def _has_seen(quantizer: FakeQuantizeBase) -> bool:
    value = quantizer.activation_post_process.min_val
    return value.numel() == 1 and bool(torch.isfinite(value).all())


def _is_new(average: Tensor) -> bool:
    """Whether an average has taken in nothing yet."""
    return average.numel() != 1 or not bool(torch.isfinite(average).all())


def _moved(average: Tensor, extreme: Tensor, rate: float) -> Tensor:
    """A moving average after one more value; the first one is the average."""
    return extreme if _is_new(average) else average.reshape(()) + rate * (extreme - average.reshape(()))
