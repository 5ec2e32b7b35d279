"""How a graph with learned scales takes its steps: by Adam, weights in units of the integers that they are rounded to.

By SGD, steps of a small scale are too large for it; and with batch norms folded into them, the weights of a layer's
channels differ by orders of magnitude, so that no one learning rate is right for all of them.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from raq.experiment.training import Qat
from raq.model.loop import Hooks, LossOf
from raq.quantize.export import is_layer
from raq.quantize.learned_scales import LearnedScale, learned_scales


class AdamInUnits(torch.optim.Adam):
    """Adam whose steps are multiples of each parameter's unit. units: of its shape, or one that broadcasts to it."""

    def __init__(self, groups: list[dict[str, Any]], units: dict[nn.Parameter, Tensor]) -> None:
        self.units = units
        super().__init__(groups)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every parameter by Adam's step times its unit."""
        before = {parameter: parameter.detach().clone() for parameter in self.units}
        super().step()
        for parameter, unit in self.units.items():
            parameter.copy_(torch.addcmul(before[parameter], parameter - before[parameter], unit))


def optimizer_of(graph: fx.GraphModule, settings: Qat) -> AdamInUnits:
    """What learns in the graph, by `settings.weight_lr` integers and by `settings.scale_lr` of scales' logarithms."""
    scales = [learned.log_change for learned in {id(one): one for _, one in learned_scales(graph)}.values()]
    units = units_of(graph)
    groups = [{"params": list(units), "lr": settings.weight_lr}, {"params": scales, "lr": settings.scale_lr}]
    return AdamInUnits([group for group in groups if group["params"]], units)


def scale_hooks(graph: fx.GraphModule, settings: Qat, loss: LossOf | None = None) -> Hooks:
    """What the training loop does otherwise for a graph of `let_learn`: one mode, an optimizer of its own.

    PTQ's result counts as an epoch: QAT does not end below it on the validation samples.
    """
    return Hooks(
        set_mode=lambda training: None, counts_start=True, optimizer=lambda: optimizer_of(graph, settings), loss=loss
    )


def units_of(graph: fx.GraphModule) -> dict[nn.Parameter, Tensor]:
    """Of every parameter that learns, scales aside, what one integer is.

    A weight that is rounded: its scale, by channel; its layer's bias, which is a weight of the input 1, likewise;
    others: a 127th of the greatest, by the first dimension of what has more than one, and of 1 where all are 0.
    """
    known = {id(learned.log_change) for _, learned in learned_scales(graph)}
    found: dict[nn.Parameter, Tensor] = {}
    modules = dict(graph.named_modules(remove_duplicate=False))
    for node in graph.graph.nodes:
        weight = node.args[1] if is_layer(node) else None
        if not isinstance(weight, fx.Node):
            continue
        rounding = modules.get(str(weight.target))
        if not isinstance(rounding, LearnedScale):
            continue
        scale = rounding.scale.detach()
        for argument in (weight.args[0], *node.args[2:3]):
            if isinstance(argument, fx.Node) and argument.op == "get_attr":
                owner, _, leaf = str(argument.target).rpartition(".")
                held = getattr(graph.get_submodule(owner), leaf)
                shape = [-1 if at == max(rounding.axis, 0) else 1 for at in range(held.ndim)]
                own = scale.reshape(shape) if held.ndim > 1 or len(scale) == len(held) else scale.max()
                found.setdefault(held, own)
    for parameter in graph.parameters():
        if parameter.requires_grad and id(parameter) not in known and parameter not in found:
            size = parameter.detach().abs()
            by_channel = size.ndim > 1
            greatest = size.flatten(1).amax(1).reshape(-1, *[1] * (size.ndim - 1)) if by_channel else size.max()
            found[parameter] = torch.where(greatest > 0, greatest, 1.0) / 127
    return {parameter: unit for parameter, unit in found.items() if parameter.requires_grad}
