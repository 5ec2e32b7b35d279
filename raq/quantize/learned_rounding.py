"""Rounding that is learned: which way each weight is rounded, and the ranges of activations, so that outputs stay.

Of a calibrated graph, on samples without their targets: the outputs of the network in float are what is learned. Each
weight may go to the integer above or below the number that it stands for (Nagel et al. 2020, Up or Down? Adaptive
Rounding), by the sign of its gradient through the rounding (Cheng et al. 2023, Optimize Weight Rounding via Signed
Gradient Descent), over the whole network at once rather than block by block; activations' scales and zero points learn
with it (Bhalgat et al. 2020, LSQ+).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from raq.errors import StageError
from raq.model.inputs import copies
from raq.quantize.export import data_and_weight_at, is_layer
from raq.quantize.ptq import FixedFakeQuantize, put_module
from raq.quantize.rewriting import put_tensor, tensor_of
from raq.quantize.sensitivity import gradient_errors
from raq.quantize.side_by_side import ORIGINALS

EDGE_LR = 1e-2  # of the logarithm of a range's edges
MAX_MOVE = 0.5  # integers by which a weight may be moved before it is rounded


class _Round(torch.autograd.Function):
    """Rounding whose gradient is that of the identity (Bengio et al. 2013, the straight-through estimator)."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _round(values: Tensor) -> Tensor:
    rounded: Tensor = _Round.apply(values)
    return rounded


class _LearnedWeight(nn.Module):
    """Rounds a weight after moving it; move: integers, [the weight's shape]."""

    def __init__(self, quantizer: FixedFakeQuantize, weight: Tensor) -> None:
        super().__init__()
        shape = [-1 if at == quantizer.axis else 1 for at in range(weight.ndim)]
        self.scale = quantizer.scale.reshape(shape if quantizer.axis >= 0 else [1] * weight.ndim)
        self.low, self.high = quantizer.low, quantizer.high
        self.move = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = _round(weight / self.scale + self.move).clamp(self.low, self.high) * self.scale
        return rounded


class _LearnedRange(nn.Module):
    """Rounds an activation to a range whose edges learn, each by shares of itself: what is below zero may be a few
    integers wide (SiLU), where a zero point that moves by integers loses all of it in a step and has no gradient then.

    A range that is symmetric stays so, and an edge at zero stays there.
    """

    def __init__(self, quantizer: FixedFakeQuantize) -> None:
        super().__init__()
        self.quantizer = (quantizer,)  # not a part of this module
        scale, zero_point = float(quantizer.scale), int(quantizer.zero_point)
        self.low, self.high = (quantizer.low - zero_point) * scale, (quantizer.high - zero_point) * scale
        self.first_zero_point = zero_point
        self.is_symmetric = zero_point * 2 in (quantizer.low + quantizer.high, quantizer.low + quantizer.high + 1)
        self.log_change = nn.Parameter(torch.zeros(1 if self.is_symmetric else 2))

    @property
    def scale(self) -> Tensor:
        change = self.log_change.exp()
        wide: Tensor = self.high * change[-1] - self.low * change[0]
        return wide.div(self.quantizer[0].high - self.quantizer[0].low)

    @property
    def zero_point(self) -> Tensor:
        if self.is_symmetric:
            return torch.tensor(float(self.first_zero_point))
        return _round(self.quantizer[0].low - self.low * self.log_change[0].exp() / self.scale)

    def forward(self, values: Tensor) -> Tensor:
        low, high, zero_point, scale = self.quantizer[0].low, self.quantizer[0].high, self.zero_point, self.scale
        rounded: Tensor = (_round(values / scale + zero_point).clamp(low, high) - zero_point) * scale
        return rounded


@dataclass(frozen=True)
class LearnedRounding:
    """What learning came to. error_before, error_after: mean squared distance of the outputs from those in float, over
    the variance of these, on the first and on the last tenth of the steps; moved_share: weights rounded another way."""

    steps: int
    error_before: float
    error_after: float
    moved_share: float


def learn_rounding(
    simulated: fx.GraphModule,
    in_float: Callable[..., Tensor],
    batches: Iterable[tuple[Tensor, ...]],
    steps: int,
    progress: Callable[[int], None] = lambda done: None,
) -> LearnedRounding:
    """Learn how to round, in place: weights become those that are meant, and the observers' ranges those found.

    simulated: the graph within `ptq.simulated`; in_float: the network that its outputs shall be those of; batches: the
    inputs of a step each, tensors [n, ...], at least `steps` of them. The network that was exported keeps its weights.
    Raises StageError if the outputs are not finite, or there is an operator that has no gradient.
    """
    for parameter in simulated.parameters():
        parameter.requires_grad_(False)
    weights, ranges, names = _put_learners(simulated)
    moves = [learner.move for _, learner in weights]
    optimizer = torch.optim.Adam([one.log_change for one in ranges], lr=EDGE_LR)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    errors: list[float] = []
    power: float | None = None  # variance of the outputs of the first step
    for step, inputs in zip(range(steps), batches, strict=False):
        with torch.no_grad():
            wanted = in_float(*copies(inputs))
        if power is None:
            power = float(wanted.var(correction=0)) or 1.0
        error = (simulated(*copies(inputs)) - wanted).square().mean() / power
        optimizer.zero_grad()
        with gradient_errors():
            error.backward()
        optimizer.step()
        schedule.step()
        _move(moves, (1 - step / steps) / steps)
        errors.append(float(error.detach()))
        if not math.isfinite(errors[-1]):
            raise StageError(
                f"learning how to round: the error of the outputs is {errors[-1]} in step {step + 1}",
                "see whether the network gives finite outputs; else set ptq.learned_rounding to 0 and ptq.effort to "
                "better",
            )
        progress(step + 1)
    moved = _keep(simulated, weights, ranges, names)
    part = max(1, len(errors) // 10)
    return LearnedRounding(len(errors), math.fsum(errors[:part]) / part, math.fsum(errors[-part:]) / part, moved)


def _move(moves: list[nn.Parameter], by: float) -> None:
    """Move each weight by so many integers against the sign of its gradient, which is taken away."""
    with torch.no_grad():
        for move in moves:
            if move.grad is not None:
                move.sub_(move.grad.sign(), alpha=by).clamp_(-MAX_MOVE, MAX_MOVE)
            move.grad = None


Weights = list[tuple[fx.Node, _LearnedWeight]]
Replaced = list[tuple[str, FixedFakeQuantize]]


def _fake_quantizers(graph: fx.GraphModule) -> Iterator[tuple[fx.Node, FixedFakeQuantize]]:
    """The nodes that call a fake quantizer, with it."""
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node in graph.graph.nodes:
        found = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(found, FixedFakeQuantize):
            yield node, found


def _put_learners(graph: fx.GraphModule) -> tuple[Weights, list[_LearnedRange], Replaced]:
    """Replace fake quantizers by what learns: of weights, by the node that reads the weight; of activations; and which
    were replaced, by name. A weight with scales by channel that is computed, not stored, is rounded to the nearest."""
    weights: Weights = []
    ranges: dict[int, _LearnedRange] = {}
    known: dict[str, _LearnedWeight] = {}
    replaced: Replaced = []
    for node, quantizer in list(_fake_quantizers(graph)):
        data = node.args[0]
        assert isinstance(data, fx.Node)
        learner: nn.Module
        if data.op == "get_attr" and all(
            is_layer(user) and user.args[data_and_weight_at(user)[1]] is node for user in node.users
        ):
            if str(data.target) not in known:  # layers that share a weight round it alike
                known[str(data.target)] = _LearnedWeight(quantizer, tensor_of(graph, data))
                weights.append((data, known[str(data.target)]))
            learner = known[str(data.target)]
        elif quantizer.axis >= 0:
            continue
        else:
            learner = ranges.setdefault(id(quantizer), _LearnedRange(quantizer))
        replaced.append((str(node.target), quantizer))
        put_module(graph, str(node.target), learner)
    return weights, list(ranges.values()), replaced


def _keep(graph: fx.GraphModule, weights: Weights, ranges: list[_LearnedRange], replaced: Replaced) -> float:
    """Put the fake quantizers back, with what was learned; the share of weights that are rounded another way."""
    moved = count = 0
    with torch.no_grad():
        for node, learner in weights:
            before = tensor_of(graph, node)
            graph.meta.setdefault(ORIGINALS, {}).setdefault(str(node.target), before)
            after = learner(before)
            nearest = (before / learner.scale).round().clamp(learner.low, learner.high)
            moved += int((nearest != (after / learner.scale).round()).sum())
            count += before.numel()
            put_tensor(graph, node, after)
        for one in ranges:
            one.quantizer[0].change(one.scale.detach(), one.zero_point.detach())
    for name, quantizer in replaced:
        put_module(graph, name, quantizer)
    return moved / count if count else 0.0
