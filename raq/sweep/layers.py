"""Which layers stay in float: the trials to run first, the configurations to try, the choice. Neither torch nor ray.

"Layers" are all that the quantizer rounds: convolutions and linear layers, and additions, products, pooling, which have
no MACs. A trial is {"mode", "layers"}: `only` those layers are quantized, or all `without` them; joined by spaces, in
the graph's order. What is left of the signal is measured by the noise of the logits (mean square of the difference to
FP32's, relative to FP32's own), which ranks layers that the top-1 of some thousand images could not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raq.experiment.metric import TOP1, Metric, amount, difference
from raq.statistics.proportions import Interval

MODE, LAYERS = "mode", "layers"
ONLY, WITHOUT = "only", "without"
Config = dict[str, str]
Noise = Mapping[str, float]  # by layer


@dataclass(frozen=True)
class Configuration:
    """A mixed-precision configuration as it was tried. layers: those in float, joined by spaces.

    noise: of its outputs, of FP32's own; value: the metric on so many validation `images`; correct: of right and wrong
    answers; drop, drop_interval: how much worse than FP32, in points or in the metric's unit; sqnr_db: of the outputs,
    None without noise.
    """

    config: Config
    layers: str
    noise: float
    value: float
    correct: int | None
    images: int
    drop: float
    drop_interval: Interval
    sqnr_db: float | None
    float_mac_share: float


@dataclass(frozen=True)
class LayerCost:
    """A layer: its name and its share of the network's multiply-accumulates, 0 for what is no layer."""

    name: str
    mac_share: float


def without(names: Sequence[str], order: Sequence[str]) -> Config:
    """The trial in which all layers but these are quantized."""
    return {MODE: WITHOUT, LAYERS: " ".join(name for name in order if name in set(names))}


def only(name: str) -> Config:
    """The trial in which this layer alone is quantized."""
    return {MODE: ONLY, LAYERS: name}


def first_trials(order: Sequence[str]) -> list[Config]:
    """All quantized; all but one, for each; each alone."""
    return [
        without([], order),
        *(without([name], order) for name in order),
        *(only(name) for name in order),
    ]


def quantized(config: Config, order: Sequence[str]) -> list[bool]:
    """By layer, whether a trial quantizes it."""
    named = set(config[LAYERS].split())
    return [(name in named) == (config[MODE] == ONLY) for name in order]


def greedy_orderings(
    layers: Sequence[LayerCost], all_quantized: float, left_out: Noise, alone: Noise, most: int
) -> list[list[str]]:
    """The configurations to try: layers left in float one after the other, in four orders, at most `most` of them.

    all_quantized: the noise with every layer quantized; left_out: with all but this one; alone: with this one only. By
    the noise that leaving a layer in float takes away, and by the noise that it makes alone, which may be hidden by the
    others' (less the least of them all, which is no layer's own); and by both over the layer's
    cost, which is its share of the MACs and, as every change between int8 and float costs something too, an even share.
    Each configuration once.
    """
    even, floor = 1 / len(layers), min(alone.values())
    cost = {layer.name: layer.mac_share + even for layer in layers}
    found: dict[frozenset[str], list[str]] = {}
    for gains in (
        {layer.name: all_quantized - left_out[layer.name] for layer in layers},
        {layer.name: alone[layer.name] - floor for layer in layers},
    ):
        useful = [name for name in gains if gains[name] > 0]
        for ranked in (
            sorted(useful, key=lambda name: -gains[name] / cost[name]),
            sorted(useful, key=lambda name: -gains[name]),
        ):
            for count in range(1, min(most, len(ranked)) + 1):
                found.setdefault(frozenset(ranked[:count]), ranked[:count])
    return list(found.values())


def choose_configurations(
    tried: Sequence[Configuration], everything: Configuration, max_drop: float, count: int, metric: Metric = TOP1
) -> tuple[list[Configuration], str]:
    """The configurations to lower and measure, the cheapest first, and why these.

    tried: without `everything`, which quantizes all. Those that lose no more than `max_drop` on the validation
    images, of which the cheapest by float MACs, then by the number of layers; if there are too few, those with the
    least noise after them.
    """
    most = amount(metric, max_drop)
    able = sorted(
        (t for t in tried if t.drop <= max_drop),
        key=lambda t: (t.float_mac_share, len(t.layers.split()), t.noise),
    )
    rest = sorted((t for t in tried if t.drop > max_drop), key=lambda t: (t.drop, t.noise))
    chosen = [*able, *rest][:count]
    why = (
        f"{len(able)} of {len(tried)} configurations lose at most {most} on the validation images; "
        "of these the cheapest by float MACs"
        if able
        else f"no configuration loses at most {most} on the validation images; those that lose least"
    )
    if everything.drop <= max_drop:
        lost = f"{difference(metric, everything.drop)} {metric.unit}".strip()
        why = f"no layer need stay in float: all in int8 lose {lost}; {why}"
    return chosen, why
