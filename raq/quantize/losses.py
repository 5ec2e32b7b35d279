"""What each layer of a quantized network loses: its graph in float and in integers, side by side, node by node.

Activations are matched: both networks compute the same samples, and each layer's output is compared with the other's,
as torch's numeric suite does it for modules. Beside that, each layer is computed alone: with what FP32 gives it, its
own input and weight rounded, nothing before it.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx

from raq.model.parity import sqnr_db
from raq.quantize.export import data_and_weight_at, layer_name
from raq.quantize.ptq import FixedFakeQuantize
from raq.quantize.side_by_side import Lane, channel_means, channel_of, side_by_side


@dataclass(frozen=True)
class LayerLoss:
    """What one layer loses, over all outputs of the samples.

    sqnr_db: of its output, with all before it quantized too; own_sqnr_db: with it alone; weight_sqnr_db: of its weight.
    None where the two are equal, and of a weight that is not rounded.

    input_low, input_high: what its input's integers can hold, None if that stays in float; saturated_share: of its
    input's values, those beyond; reach: how far from the mean the farthest value within is, in standard deviations:
    where it is large, a few outliers take the integers from the rest; used_share: of what the integers can hold, the
    part between the least and the greatest value: small where all values are far from 0, which every range holds.
    shift_share: of the power of its own error, that of the means of channels, which a bias could take away.
    """

    name: str
    sqnr_db: float | None
    own_sqnr_db: float | None
    weight_sqnr_db: float | None
    input_low: float | None
    input_high: float | None
    saturated_share: float | None
    reach: float | None
    used_share: float | None
    shift_share: float | None

    def as_record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def losses(simulated: fx.GraphModule, inputs: tuple[Tensor, ...]) -> list[LayerLoss]:
    """The layers in order of execution, compared on these inputs [n, ...].

    simulated: the graph within `ptq.simulated`. A layer that is called twice is listed twice.
    """
    return [_loss(*layer) for layer in side_by_side(simulated, inputs)]


def _loss(exact: Lane, rounded: Lane, node: fx.Node) -> LayerLoss:
    """Of a layer that both have just computed."""
    wanted, given = exact.env[node], rounded.env[node]
    quantizers = {one: module for one in node.all_input_nodes if (module := exact.quantizer(one)) is not None}
    args, kwargs = fx.node.map_arg(
        (node.args, node.kwargs),
        lambda one: _alone(one, quantizers, exact, rounded),
    )
    alone = node.target(*args, **kwargs)  # type: ignore[operator]
    data, weight = (node.args[at] for at in data_and_weight_at(node))
    assert isinstance(data, fx.Node)
    assert isinstance(weight, fx.Node)
    low = high = saturated = reach = used = None
    if data in quantizers:
        values, quantizer = exact.env[data], quantizers[data]
        low, high = (float((end - quantizer.zero_point) * quantizer.scale) for end in (quantizer.low, quantizer.high))
        half = 0.5001 * float(quantizer.scale)  # what is nearer rounds to the end of the range
        saturated = float(((values < low - half) | (values > high + half)).float().mean())
        least, greatest = (min(max(float(end), low), high) for end in (values.min(), values.max()))
        used = (greatest - least) / (high - low)
        mean, deviation = float(values.mean()), float(values.std())
        reach = max(mean - least, greatest - mean) / deviation if deviation else None
    stored = quantizers.get(weight)
    return LayerLoss(
        name=layer_name(node),
        sqnr_db=_sqnr(wanted, given),
        own_sqnr_db=_sqnr(wanted, alone),
        weight_sqnr_db=None if stored is None else _sqnr(exact.env[weight], _alone(weight, quantizers, exact, rounded)),
        input_low=low, input_high=high, saturated_share=saturated, reach=reach, used_share=used,
        shift_share=_shift(alone - wanted, channel_of(node, wanted)),
    )  # fmt: skip


def _alone(one: fx.Node, quantizers: dict[fx.Node, FixedFakeQuantize], exact: Lane, rounded: Lane) -> Any:
    """What a layer alone reads there: activations of FP32, rounded; its own tensors as they are in integers."""
    source = one.args[0] if one in quantizers else one
    if isinstance(source, fx.Node) and source.op == "get_attr":
        return rounded.env[one]
    return quantizers[one](exact.env[one]) if one in quantizers else exact.env[one]


def _sqnr(wanted: Tensor, given: Tensor) -> float | None:
    return sqnr_db(wanted.float().numpy(), given.float().numpy())


def _shift(error: Tensor, channel: int) -> float | None:
    """The share of an error's power that is of its means by channel; None where there is no error."""
    power = float(error.double().square().sum())
    if power == 0 or error.ndim < 2:
        return None
    means = channel_means(error, channel)
    return float(means.square().sum()) * (error.numel() / means.numel()) / power
