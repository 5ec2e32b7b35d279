"""What each layer of a quantized network loses: its graph in float and in integers, side by side, node by node.

Activations are matched: both networks compute the same samples, and each layer's output is compared with the other's,
as torch's numeric suite does it for modules. Beside that, each layer is computed alone: with what FP32 gives it, its
own input and weight rounded, nothing before it.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from raq.model.parity import sqnr_db
from raq.quantize.export import is_layer, layer_name
from raq.quantize.ptq import FixedFakeQuantize


@dataclass(frozen=True)
class LayerLoss:
    """What one layer loses, over all outputs of the samples.

    sqnr_db: of its output, with all before it quantized too; own_sqnr_db: with it alone; weight_sqnr_db: of its weight.
    None where the two are equal, and of a weight that is not rounded.

    input_low, input_high: what its input's integers can hold, None if that stays in float; saturated_share: of its
    input's values, those beyond; reach: the larger of the two bounds in standard deviations of the input: where it is
    large, a few outliers take the integers from the rest. shift_share: of the power of its own error, that of the means
    of channels, which a bias could take away.
    """

    name: str
    sqnr_db: float | None
    own_sqnr_db: float | None
    weight_sqnr_db: float | None
    input_low: float | None
    input_high: float | None
    saturated_share: float | None
    reach: float | None
    shift_share: float | None

    def as_record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


class _Exact(fx.Interpreter):
    """The graph without its fake quantizers: FP32."""

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Its input itself, of a fake quantizer."""
        if isinstance(self.fetch_attr(target), FixedFakeQuantize):
            return args[0]
        return super().call_module(target, args, kwargs)


def losses(simulated: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[LayerLoss]:
    """The layers in order of execution, compared on these inputs [n, ...].

    simulated: the graph within `ptq.simulated`. A layer that is called twice is listed twice.
    """
    exact, rounded = _Exact(simulated), fx.Interpreter(simulated)
    for lane in (exact, rounded):
        lane.args_iter = iter(inputs)
    found = []
    with torch.no_grad():
        for node in simulated.graph.nodes:
            for lane in (exact, rounded):
                lane.env[node] = lane.run_node(node)
            if is_layer(node):
                found.append(_loss(exact, rounded, node))
            for done in exact.user_to_last_uses.get(node, []):
                for lane in (exact, rounded):
                    del lane.env[done]
    return found


def _loss(exact: fx.Interpreter, rounded: fx.Interpreter, node: fx.Node) -> LayerLoss:
    """Of a layer that both have just computed."""
    wanted, given = exact.env[node], rounded.env[node]
    quantizers = {one: module for one in node.all_input_nodes if (module := _quantizer(exact, one)) is not None}
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs),
        lambda one: quantizers[one](exact.env[one]) if one in quantizers else exact.env[one],
    )
    alone = node.target(*args, **kwargs)  # type: ignore[operator]
    data, weight = node.all_input_nodes[:2]
    low = high = saturated = reach = None
    if data in quantizers:
        values, quantizer = exact.env[data], quantizers[data]
        low, high = (float((end - quantizer.zero_point) * quantizer.scale) for end in (quantizer.low, quantizer.high))
        half = 0.5001 * float(quantizer.scale)  # what is nearer rounds to the end of the range
        saturated = float(((values < low - half) | (values > high + half)).float().mean())
        deviation = float(values.std())
        reach = max(abs(low), abs(high)) / deviation if deviation else None
    stored = quantizers.get(weight)
    return LayerLoss(
        name=layer_name(node),
        sqnr_db=_sqnr(wanted, given),
        own_sqnr_db=_sqnr(wanted, alone),
        weight_sqnr_db=None if stored is None else _sqnr(exact.env[weight], stored(exact.env[weight])),
        input_low=low, input_high=high, saturated_share=saturated, reach=reach,
        shift_share=_shift(alone - wanted, channel=-1 if wanted.ndim in (2, 3) and _is_linear(node) else 1),
    )  # fmt: skip


def _quantizer(lane: fx.Interpreter, node: fx.Node) -> FixedFakeQuantize | None:
    found = lane.fetch_attr(str(node.target)) if node.op == "call_module" else None
    return found if isinstance(found, FixedFakeQuantize) else None


def _is_linear(node: fx.Node) -> bool:
    return "conv" not in str(node.target)


def _sqnr(wanted: Tensor, given: Tensor) -> float | None:
    return sqnr_db(wanted.float().numpy(), given.float().numpy())


def _shift(error: Tensor, channel: int) -> float | None:
    """The share of an error's power that is of its means by channel; None where there is no error."""
    power = float(error.double().square().sum())
    if power == 0 or error.ndim < 2:
        return None
    others = [at for at in range(error.ndim) if at != channel % error.ndim]
    means = error.double().mean(dim=others)
    return float(means.square().sum()) * (error.numel() / means.numel()) / power
