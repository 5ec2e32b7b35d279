"""Which layers stay in float: trials, greedy orderings, the choice."""

from raq.sweep.layers import (
    Configuration,
    LayerCost,
    choose_configurations,
    first_trials,
    greedy_orderings,
    quantized,
    without,
)

ORDER = ["stem", "a.0", "a.1", "head"]


def test_the_first_trials() -> None:
    found = first_trials(ORDER)
    assert len(found) == 1 + 2 * 4
    assert [quantized(c, ORDER).count(True) for c in found] == [4, 3, 3, 3, 3, 1, 1, 1, 1]
    assert quantized(without(["head", "stem"], ORDER), ORDER) == [False, True, True, False]
    assert without(["head", "stem"], ORDER) == without(["stem", "head"], ORDER), "a mixture has one name"


LAYERS = [LayerCost("stem", 0.05), LayerCost("a.0", 0.80), LayerCost("a.1", 0.14), LayerCost("head", 0.01)]
QUIET = {layer.name: 0.01 for layer in LAYERS}


def test_ladders_go_by_what_is_gained_and_by_what_it_costs() -> None:
    """The head is cheap, a.0 gains most and costs nearly all; a.1 is no gain and stays in int8."""
    found = greedy_orderings(LAYERS, 1.0, {"stem": 0.7, "a.0": 0.5, "a.1": 1.1, "head": 0.6}, QUIET, most=3)
    assert found == [["head"], ["head", "stem"], ["head", "stem", "a.0"], ["a.0"], ["a.0", "head"]]
    assert greedy_orderings(LAYERS, 1.0, {layer.name: 1.2 for layer in LAYERS}, QUIET, most=3) == []


def test_a_layer_whose_noise_the_others_hide_is_left_out_too() -> None:
    """Leaving a.1 out takes nothing away while the others are noisy; alone it is the worst."""
    nothing = {layer.name: 1.0 for layer in LAYERS}
    assert greedy_orderings(LAYERS, 1.0, nothing, {**QUIET, "a.1": 0.5, "stem": 0.1}, most=2) == [
        ["a.1"],
        ["a.1", "stem"],
    ]


def tried_with(layers: str, drop_points: float, noise: float, float_mac_share: float) -> Configuration:
    config = {"mode": "without", "layers": layers}
    return Configuration(config, layers, noise, 0.0, 0, 1, drop_points, (0.0, 0.0), None, float_mac_share)


def test_the_cheapest_that_lose_little_are_chosen() -> None:
    tried = [
        tried_with("a.0", 0.1, 0.1, 0.8),
        tried_with("head", 0.6, 0.3, 0.01),
        tried_with("stem head", 0.4, 0.2, 0.06),
    ]
    everything = tried_with("", 2.0, 1.0, 0.0)
    chosen, why = choose_configurations(tried, everything, 0.5, 2)
    assert [t.layers for t in chosen] == ["stem head", "a.0"]
    assert why.startswith("2 of 3 configurations lose at most 0.5 points")
    chosen, why = choose_configurations(tried, everything, 0.05, 2)
    assert [t.layers for t in chosen] == ["a.0", "stem head"]
    assert "no configuration loses at most 0.05" in why
    assert choose_configurations(tried, tried_with("", 0.2, 1.0, 0.0), 0.5, 2)[1].startswith(
        "no layer need stay in float: all in int8"
    )
