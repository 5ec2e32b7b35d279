"""Training of a calibrated graph: weights through their rounding, and the scales that they and activations have.

Scales learn from those that calibration found, by the gradient of LSQ (Esser et al. 2020, Learned Step Size
Quantization; torch's own kernels). What learns is their logarithm (Jain et al. 2020, Trained Quantization Thresholds).
Zero points stay. The graph is one of evaluation mode: batch norms are folded into the layers before them or compute
with the statistics that they have, and nothing is dropped.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import ObserverBase

from raq.quantize.calibrated import fix_range, observers
from raq.quantize.export import is_layer
from raq.quantize.ptq import put_module


class LearnedScale(nn.Module):
    """Rounds values to the integers of a scale that learns; off: leaves them as they are.

    scale: float32 [1], or [channels] along `axis`; log_change: of that logarithm, what has been learned.
    """

    def __init__(self, observer: ObserverBase) -> None:
        super().__init__()
        scale, zero_point = observer.calculate_qparams()
        self.observer = (observer,)  # no part of this module
        self.shape, self.kind = scale.shape, zero_point.dtype
        own: Any = observer
        self.axis = int(getattr(own, "ch_axis", -1)) if scale.numel() > 1 else -1
        self.low, self.high = int(own.quant_min), int(own.quant_max)
        self.first_scale: Tensor
        self.zero_point: Tensor
        self.register_buffer("first_scale", scale.detach().flatten().float().clone())
        self.log_change = nn.Parameter(torch.zeros(scale.numel()))
        self.register_buffer("zero_point", zero_point.detach().flatten().float().clone())
        self.off = False

    def forward(self, values: Tensor) -> Tensor:
        """The values that integers of this scale can hold, of the shape given."""
        if self.off:
            return values
        if self.axis < 0:
            return torch._fake_quantize_learnable_per_tensor_affine(
                values, self.scale, self.zero_point, self.low, self.high, 1.0
            )
        return torch._fake_quantize_learnable_per_channel_affine(
            values, self.scale, self.zero_point, self.axis, self.low, self.high, 1.0
        )

    @property
    def scale(self) -> Tensor:
        """The scale as it is now."""
        return self.first_scale * self.log_change.exp()

    def fixed_observer(self) -> ObserverBase:
        """The observer that this stands for, its range what was learned."""
        scale = self.scale.detach().reshape(self.shape)
        zero_point: Tensor = self.zero_point.to(self.kind).reshape(self.shape)
        fix_range(self.observer[0], scale.to("cpu"), zero_point.to("cpu"))
        return self.observer[0]


def learned_scales(graph: fx.GraphModule) -> list[tuple[str, LearnedScale]]:
    """Those of a graph, by every name that calls them."""
    every = graph.named_modules(remove_duplicate=False)
    return [(name, module) for name, module in every if isinstance(module, LearnedScale)]


def put_learned_scales(calibrated: fx.GraphModule) -> None:
    """Replace the observers of a calibrated graph by scales that learn, in place."""
    known: dict[int, LearnedScale] = {}
    for name, observer in list(observers(calibrated)):
        put_module(calibrated, name, known.setdefault(id(observer), LearnedScale(observer)))


def put_observers(trained: fx.GraphModule) -> None:
    """The reverse: observers, with the ranges that were learned, in place."""
    for name, learned in learned_scales(trained):
        put_module(trained, name, learned.fixed_observer())


@contextmanager
def in_float(graph: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """The graph with nothing rounded meanwhile."""
    every = [learned for _, learned in learned_scales(graph)]
    for learned in every:
        learned.off = True
    try:
        yield graph
    finally:
        for learned in every:
            learned.off = False


def let_learn(graph: fx.GraphModule, frozen: Collection[str] = (), own: Collection[str] | None = None) -> None:
    """Let the parameters that the graph reads learn, and the scales; frozen: names of those that do not.

    own: names of all tensors of the network, if they are known; a bias that is none of them, but was folded or
    corrected, learns as the weight of its layer does. Weights and biases of layers that the graph's rewriting has
    stored as buffers become parameters; the network's own buffers, fixed filters say, belong into `frozen`.
    """
    held = set(frozen)
    for node in graph.graph.nodes:
        sources = [_source(argument) for argument in node.args[1:3]] if is_layer(node) else []
        if own is not None and sources and sources[0] in held:
            held |= {bias for bias in sources[1:] if bias is not None and bias not in own}
        for name in sources:
            if name is not None and name not in held:
                _as_parameter(graph, name)
    read = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"} - held
    read |= {f"{name}.log_change" for name, _ in learned_scales(graph)}
    for name, parameter in graph.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in read and parameter.is_floating_point())


def _source(argument: Any) -> str | None:
    """The tensor of the graph that an argument is, through what rounds it; None if it is computed."""
    while isinstance(argument, fx.Node) and argument.op == "call_module":
        argument = argument.args[0]
    return str(argument.target) if isinstance(argument, fx.Node) and argument.op == "get_attr" else None


def _as_parameter(graph: fx.GraphModule, name: str) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = graph.get_submodule(owner)
    held = getattr(holder, leaf)
    if not isinstance(held, nn.Parameter) and held.is_floating_point():
        delattr(holder, leaf)
        holder.register_parameter(leaf, nn.Parameter(held.detach().clone()))
