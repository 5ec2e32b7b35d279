"""What the trials of a sweep come to: their names, the curve over calibration sizes, the choice. Neither torch nor ray.

A trial is a calibration: {"calibration.size", "calibration.observer", "calibration.percentile", "seed"}. All trials
are compared on the same validation images; the test split is read by the chosen candidate alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raq.bench.statistics import mean_drop
from raq.fingerprints import digest

SIZE, OBSERVER, PERCENTILE, SEED = "calibration.size", "calibration.observer", "calibration.percentile", "seed"
Config = dict[str, Any]
Right = NDArray[np.bool_]


def grid(ptq: Mapping[str, Any], sweep: Mapping[str, Any]) -> list[Config]:
    """Every combination, seeds varying fastest: what the sweep does not name is as in `ptq`.

    The percentile counts for its own observer alone, so that other observers are not tried once for each of its values.
    """
    calibration = ptq["calibration"]
    sizes = sorted(sweep["sizes"] or [calibration["size"]], reverse=True)
    observers = sweep["observers"] or [calibration["observer"]]
    percentiles = sweep["percentiles"] or [calibration["percentile"]]
    return [
        {SIZE: size, OBSERVER: observer, PERCENTILE: percentile, SEED: seed}
        for observer in observers
        for percentile in (percentiles if observer == "percentile" else [None])
        for size, seed in itertools.product(sizes, sweep["seeds"])
    ]


def config_digest(config: Config) -> str:
    """A name for a trial's files."""
    return digest(config)[:16]


def curve(trials: Sequence[Mapping[str, Any]], right: Mapping[str, Right], baseline: Right) -> list[dict[str, Any]]:
    """One row a calibration, over its seeds, by observer and size.

    trials: of those that finished, their config and digest; right: by digest, bool [images]; baseline: FP32's.
    drop_points: of FP32's top-1 on these images, mean over seeds; against_largest: points lost against the largest
    size of the same observer, with a 95% interval over images.
    """
    groups: dict[tuple[Any, ...], dict[int, dict[int, Right]]] = {}
    for trial in trials:
        config = trial["config"]
        by_size = groups.setdefault((config[OBSERVER], config[PERCENTILE]), {})
        by_size.setdefault(config[SIZE], {})[config[SEED]] = right[trial["digest"]]
    rows = []
    for (observer, percentile), by_size in groups.items():
        largest = by_size[max(by_size)]
        for size, by_seed in sorted(by_size.items()):
            shared = sorted(set(by_seed) & set(largest))
            lost, interval = (
                mean_drop(np.stack([largest[s] for s in shared]), np.stack([by_seed[s] for s in shared]))
                if shared
                else (None, None)
            )
            found = [float(by_seed[seed].mean()) for seed in sorted(by_seed)]
            rows.append(
                {
                    "observer": observer,
                    "percentile": percentile,
                    "size": size,
                    "seeds": sorted(by_seed),
                    "top1": found,
                    "mean_top1": float(np.mean(found)),
                    "std_top1": float(np.std(found, ddof=1)) if len(found) > 1 else None,
                    "drop_points": 100 * (float(baseline.mean()) - float(np.mean(found))),
                    "against_largest": lost,
                    "against_largest_interval": interval,
                }
            )
    return rows


def choose(rows: Sequence[Mapping[str, Any]], seed: int, asked: int | None = None) -> dict[str, Any]:
    """The smallest calibration that is not detectably worse than the largest of the best observer; why, in words.

    The best observer is the one whose largest size has the highest mean top-1. seed: taken if it was tried. asked: the
    largest size that was to be tried; that it did not finish is said.
    """
    largest: dict[tuple[Any, Any], Mapping[str, Any]] = {}
    for row in rows:
        key = (row["observer"], row["percentile"])
        if key not in largest or row["size"] > largest[key]["size"]:
            largest[key] = row
    best = max(largest.values(), key=lambda row: row["mean_top1"])
    same = [r for r in rows if (r["observer"], r["percentile"]) == (best["observer"], best["percentile"])]
    compared = [r for r in same if r is best or r["against_largest_interval"] is not None]
    able = [r for r in same if r is best or (r["against_largest_interval"] and r["against_largest_interval"][0] <= 0)]
    chosen = min(able, key=lambda row: row["size"])
    low, high = chosen["against_largest_interval"] or (0.0, 0.0)
    why = (
        "no smaller one could be compared"
        if len(compared) == 1
        else "all smaller ones are detectably worse"
        if chosen is best
        else f"not detectably worse than {best['size']} images ({chosen['against_largest']:.2f} points, 95% interval "
        f"{low:.2f} to {high:.2f})"
    )
    if asked is not None and best["size"] < asked:
        why += f"; {asked} images did not finish with it"
    config = {
        SIZE: chosen["size"],
        OBSERVER: chosen["observer"],
        PERCENTILE: chosen["percentile"],
        SEED: seed if seed in chosen["seeds"] else chosen["seeds"][0],
    }
    return {"config": config, "why": f"{chosen['observer']}, {chosen['size']} images: {why}"}
