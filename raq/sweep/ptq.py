"""What the trials of a sweep come to: their names, the curve over calibration sizes, the choice. Neither torch nor ray.

A trial is a calibration and what it is for: {"calibration.size", "calibration.observer", "calibration.percentile",
"per_channel", "reduce_range", "seed"}, and where methods are swept {"equalization", "bias_correction",
"learned_rounding"}. All trials are compared on the same validation images; the test split is read by the chosen
candidate alone.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from raq.experiment.fields import Extent
from raq.experiment.metric import TOP1, Metric, amount, difference
from raq.experiment.ptq import Ptq
from raq.experiment.sweep import (
    EQUALIZATION,
    METHOD,
    OBSERVER,
    PER_CHANNEL,
    PERCENTILE,
    PTQ_METHODS,
    REDUCE_RANGE,
    SEED,
    SIZE,
    Config,
    PtqSweep,
)  # fmt: skip
from raq.statistics.proportions import Interval, together
from raq.store.settings import PtqSweepSettings
from raq.sweep.answers import Answers, mean_worse

EXTENTS: tuple[str, ...] = get_args(Extent)


@dataclass(frozen=True)
class CurveRow:
    """A calibration over its seeds. values: by seed, of the metric; drop: how much worse their mean is than FP32, in
    points or in the metric's unit.

    against_largest: what is lost against the largest size of the same observer, with a 95% interval over samples; None
    where no seed is shared. loses_at_most: the upper end of that interval where all smaller sizes of an observer are
    compared at once (Bonferroni).
    """

    observer: str
    percentile: float | None
    per_channel: bool
    reduce_range: bool
    size: int
    seeds: list[int]
    values: list[float]
    mean_value: float
    std_value: float | None
    drop: float
    against_largest: float | None
    against_largest_interval: Interval | None
    loses_at_most: float | None
    equalization: str | None = None
    bias_correction: bool | None = None
    learned_rounding: int | None = None

    @property
    def method(self) -> tuple[Any, ...]:
        """What it has in common with the rows of its other sizes."""
        calibration = (self.observer, self.percentile, self.per_channel, self.reduce_range)
        return *calibration, self.equalization, self.bias_correction, self.learned_rounding

    @property
    def cost(self) -> tuple[int, bool, int]:
        """By which methods are ordered: first by what they cost at every call, then by what is done once."""
        extent = 0 if self.equalization is None else EXTENTS.index(self.equalization)
        return extent, bool(self.bias_correction), self.learned_rounding or 0

    @property
    def swept_methods(self) -> Config:
        """The methods beside calibration, by key; empty where none of them was swept."""
        found = (self.equalization, self.bias_correction, self.learned_rounding)
        return {key: value for key, value in zip(PTQ_METHODS, found, strict=True) if value is not None}


def grid(ptq: Ptq, sweep: PtqSweep, *, reduce_range: bool) -> list[Config]:
    """Every combination, seeds varying fastest: what the sweep does not name is as in `ptq`, but that methods beside
    calibration are left out where none of them is swept.

    reduce_range: as it is on this machine. The percentile counts for its own observer alone, so that other observers
    are not tried once for each of its values.
    """
    calibration = ptq.calibration
    sizes = sorted(sweep.sizes or [calibration.size], reverse=True)
    observers = sweep.observers or [calibration.observer]
    percentiles = sweep.percentiles or [calibration.percentile]
    return [
        {
            SIZE: size,
            OBSERVER: observer,
            PERCENTILE: percentile,
            PER_CHANNEL: per_channel,
            REDUCE_RANGE: reduced,
            **methods,
            SEED: seed,
        }
        for methods in _combined_methods(ptq, sweep)
        for observer in observers
        for percentile in (percentiles if observer == "percentile" else [None])
        for per_channel in sweep.per_channel or [ptq.per_channel]
        for reduced in sweep.reduce_range or [reduce_range]
        for size, seed in itertools.product(sizes, sweep.seeds)
    ]


def _combined_methods(ptq: Ptq, sweep: PtqSweep) -> list[Config]:
    """Every combination of the methods beside calibration; one that names none of them where none is swept."""
    if not any(getattr(sweep, key) for key in PTQ_METHODS):
        return [{}]
    tried = (getattr(sweep, key) or [getattr(ptq, key)] for key in PTQ_METHODS)
    return [dict(zip(PTQ_METHODS, values, strict=True)) for values in itertools.product(*tried)]


def only_calibrates(config: Config) -> bool:
    """Whether a trial does nothing beside calibration."""
    return config.get(EQUALIZATION, "none") == "none" and not any(config.get(key) for key in PTQ_METHODS[1:])


def trial_count(settings: Mapping[str, Any]) -> int:
    """How many trials the sweep of a stage with these settings has."""
    asked = PtqSweepSettings.model_validate(settings, by_name=True)
    return len(grid(asked.ptq, asked.sweep, reduce_range=asked.reduce_range))


def curve(trials: Mapping[str, Config], answers: Mapping[str, Answers], baseline: Answers) -> list[CurveRow]:
    """One row a calibration, over its seeds, by observer and size.

    trials: those that finished, by digest; answers: theirs on the validation samples; baseline: FP32's.
    """
    groups: dict[tuple[Any, ...], dict[int, dict[int, Answers]]] = {}
    for name, config in trials.items():
        by_size = groups.setdefault(tuple(config.get(key) for key in METHOD), {})
        by_size.setdefault(config[SIZE], {})[config[SEED]] = answers[name]
    rows: list[CurveRow] = []
    for (observer, percentile, per_channel, reduce_range, *methods), by_size in groups.items():
        largest = by_size[max(by_size)]
        for size, by_seed in sorted(by_size.items()):
            shared = sorted(set(by_seed) & set(largest))
            lost, interval, most = None, None, None
            if shared:
                pairs = [(largest[s], by_seed[s]) for s in shared]
                lost, interval = mean_worse(pairs)
                most = mean_worse(pairs, together(len(by_size) - 1))[1][1]
            found = [by_seed[seed].value for seed in sorted(by_seed)]
            points = baseline.metric.sign * baseline.metric.scale
            rows.append(
                CurveRow(
                    observer=observer,
                    percentile=percentile,
                    per_channel=per_channel,
                    reduce_range=reduce_range,
                    size=size,
                    seeds=sorted(by_seed),
                    values=found,
                    mean_value=float(np.mean(found)),
                    std_value=float(np.std(found, ddof=1)) if len(found) > 1 else None,
                    drop=points * (baseline.value - float(np.mean(found))),
                    against_largest=lost,
                    against_largest_interval=interval,
                    loses_at_most=most,
                    **dict(zip(PTQ_METHODS, methods, strict=True)),
                )
            )
    return rows


def choose(
    rows: Sequence[CurveRow], seed: int, margin: float, asked: int | None = None, metric: Metric = TOP1
) -> dict[str, Any]:
    """The smallest calibration shown to lose no more than `margin` against the largest of the best observer.

    Without one, the largest. The best observer is the one whose largest size loses least on average; of methods beside
    calibration, those that lose at most `margin` more are alike by the estimate, and the one that does least is best.
    margin: points, or in the metric's unit. seed: taken if it was tried. asked: the largest size that was to be tried;
    that it did not finish is said. `why`: in words.
    """
    largest: dict[tuple[Any, ...], CurveRow] = {}
    for row in rows:
        if row.method not in largest or row.size > largest[row.method].size:
            largest[row.method] = row
    least = min(row.drop for row in largest.values())
    best = min((row for row in largest.values() if row.drop <= least + margin), key=lambda row: (row.cost, row.drop))
    compared = {r.size: (r, r.loses_at_most) for r in rows if r.method == best.method and r.size != best.size}
    bounds = {size: (row, bound) for size, (row, bound) in compared.items() if bound is not None}
    able = [size for size, (_, bound) in bounds.items() if bound <= margin]
    chosen, why = (
        best,
        f"no smaller one is shown to lose at most {amount(metric, margin)} against it on these validation images",
    )
    if not bounds:
        why = "no smaller one could be compared"
    elif able:
        chosen, bound = bounds[min(able)]
        lost = f"{difference(metric, chosen.against_largest or 0.0)}, at most {difference(metric, bound)}"
        why = f"the smallest that is shown to lose at most {amount(metric, margin)} against {best.size} images ({lost})"
    if asked is not None and best.size < asked:
        why += f"; {asked} images did not finish with it"
    config = {
        SIZE: chosen.size,
        OBSERVER: chosen.observer,
        PERCENTILE: chosen.percentile,
        PER_CHANNEL: chosen.per_channel,
        REDUCE_RANGE: chosen.reduce_range,
        **chosen.swept_methods,
        SEED: seed if seed in chosen.seeds else chosen.seeds[0],
    }
    said = "".join(f", {key}: {str(value).lower()}" for key, value in chosen.swept_methods.items())
    if best.drop > least:
        why += f"; a dearer method loses {difference(metric, best.drop - least)} less, which is within the margin"
    return {"config": config, "why": f"{chosen.observer}, {chosen.size} images{said}: {why}"}
