"""What the trials of a sweep come to: their names, the curve over calibration sizes, the choice. Neither torch nor ray.

A trial is a calibration and what it is for: {"calibration.size", "calibration.observer", "calibration.percentile",
"per_channel", "reduce_range", "seed"}. All trials are compared on the same validation images; the test split is read by
the chosen candidate alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raq.experiment.sweep import METHOD, OBSERVER, PER_CHANNEL, PERCENTILE, REDUCE_RANGE, SEED, SIZE, Config
from raq.statistics import mean_drop, together

Right = NDArray[np.bool_]


def grid(settings: Mapping[str, Any]) -> list[Config]:
    """Every combination, seeds varying fastest: what the sweep does not name is as in `ptq`.

    settings: of the stage: "ptq", "sweep", and "reduce_range" as it is on this machine.

    The percentile counts for its own observer alone, so that other observers are not tried once for each of its values.
    """
    ptq, sweep = settings["ptq"], settings["sweep"]
    calibration = ptq["calibration"]
    sizes = sorted(sweep["sizes"] or [calibration["size"]], reverse=True)
    observers = sweep["observers"] or [calibration["observer"]]
    percentiles = sweep["percentiles"] or [calibration["percentile"]]
    return [
        {
            SIZE: size,
            OBSERVER: observer,
            PERCENTILE: percentile,
            PER_CHANNEL: per_channel,
            REDUCE_RANGE: reduce_range,
            SEED: seed,
        }
        for observer in observers
        for percentile in (percentiles if observer == "percentile" else [None])
        for per_channel in sweep["per_channel"] or [ptq["per_channel"]]
        for reduce_range in sweep["reduce_range"] or [settings["reduce_range"]]
        for size, seed in itertools.product(sizes, sweep["seeds"])
    ]


def trial_count(settings: Mapping[str, Any]) -> int:
    """How many trials the sweep of a stage with these settings has."""
    return len(grid(settings))


def curve(trials: Sequence[Mapping[str, Any]], right: Mapping[str, Right], baseline: Right) -> list[dict[str, Any]]:
    """One row a calibration, over its seeds, by observer and size.

    trials: of those that finished, their config and digest; right: by digest, bool [images]; baseline: FP32's.
    drop_points: of FP32's top-1 on these images, mean over seeds; against_largest: points lost against the largest
    size of the same observer, with a 95% interval over images; loses_at_most: the upper end of that interval where all
    smaller sizes of an observer are compared at once (Bonferroni).
    """
    groups: dict[tuple[Any, ...], dict[int, dict[int, Right]]] = {}
    for trial in trials:
        config = trial["config"]
        by_size = groups.setdefault(tuple(config[key] for key in METHOD), {})
        by_size.setdefault(config[SIZE], {})[config[SEED]] = right[trial["digest"]]
    rows = []
    for (observer, percentile, per_channel, reduce_range), by_size in groups.items():
        largest = by_size[max(by_size)]
        for size, by_seed in sorted(by_size.items()):
            shared = sorted(set(by_seed) & set(largest))
            lost, interval, most = None, None, None
            if shared:
                pair = np.stack([largest[s] for s in shared]), np.stack([by_seed[s] for s in shared])
                lost, interval = mean_drop(*pair)
                most = mean_drop(*pair, together(len(by_size) - 1))[1][1]
            found = [float(by_seed[seed].mean()) for seed in sorted(by_seed)]
            rows.append(
                {
                    "observer": observer,
                    "percentile": percentile,
                    "per_channel": per_channel,
                    "reduce_range": reduce_range,
                    "size": size,
                    "seeds": sorted(by_seed),
                    "top1": found,
                    "mean_top1": float(np.mean(found)),
                    "std_top1": float(np.std(found, ddof=1)) if len(found) > 1 else None,
                    "drop_points": 100 * (float(baseline.mean()) - float(np.mean(found))),
                    "against_largest": lost,
                    "against_largest_interval": interval,
                    "loses_at_most": most,
                }
            )
    return rows


def choose(rows: Sequence[Mapping[str, Any]], seed: int, margin: float, asked: int | None = None) -> dict[str, Any]:
    """The smallest calibration shown to lose no more than `margin` points against the largest of the best observer.

    Without one, the largest. The best observer is the one whose largest size has the highest mean top-1. seed: taken if
    it was tried. asked: the largest size that was to be tried; that it did not finish is said. `why`: in words.
    """
    largest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        key = _method(row)
        if key not in largest or row["size"] > largest[key]["size"]:
            largest[key] = row
    best = max(largest.values(), key=lambda row: row["mean_top1"])
    same = [r for r in rows if _method(r) == _method(best)]
    compared = [r for r in same if r is not best and r["loses_at_most"] is not None]
    able = [r for r in compared if r["loses_at_most"] <= margin]
    chosen = min(able, key=lambda row: row["size"], default=best)
    why = (
        "no smaller one could be compared"
        if not compared
        else f"no smaller one is shown to lose at most {margin:g} points against it on these validation images"
        if chosen is best
        else f"the smallest that is shown to lose at most {margin:g} points against {best['size']} images "
        f"({chosen['against_largest']:.2f}, at most {chosen['loses_at_most']:.2f})"
    )
    if asked is not None and best["size"] < asked:
        why += f"; {asked} images did not finish with it"
    config = {
        SIZE: chosen["size"],
        OBSERVER: chosen["observer"],
        PERCENTILE: chosen["percentile"],
        PER_CHANNEL: chosen["per_channel"],
        REDUCE_RANGE: chosen["reduce_range"],
        SEED: seed if seed in chosen["seeds"] else chosen["seeds"][0],
    }
    return {"config": config, "why": f"{chosen['observer']}, {chosen['size']} images: {why}"}


def _method(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row of the curve has in common with the rows of its other sizes."""
    return row["observer"], row["percentile"], row["per_channel"], row["reduce_range"]
