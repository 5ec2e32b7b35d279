"""What a measurement comes to: a row a contender and batch size, from its rounds. Times in milliseconds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from raq.bench.messages import ContenderSettings, Loaded, Warmed
from raq.bench.noise import Sample, is_far, near_handover
from raq.bench.ratio_statistics import (
    Ratios,
    counted_rounds,
    launch_agreement,
    paired_ratio,
    quantile,
    samples_needed,
    undisturbed_ratios,
)


@dataclass
class Round:
    """One round of contenders at one batch size. attempts: every sample by contender, the accepted one last.

    number: of the round, at this batch size. Not every contender has a sample in every round.
    """

    launch: int
    attempts: dict[str, list[Sample]] = field(default_factory=dict)
    number: int = 0

    def sample(self, name: str) -> Sample:
        """The sample that counts."""
        return self.attempts[name][-1]

    def median_ms(self, name: str) -> float:
        """Of the sample that counts."""
        return float(np.median(self.sample(name).samples_ms))


@dataclass(frozen=True)
class Launch:
    """What a contender's process reported when it was loaded and, by batch size, when it was warmed up."""

    loaded: Loaded
    warmed: dict[int, Warmed] = field(default_factory=dict)


def mark_far(rounds: Iterable[Round], remembered_us: float | None = None) -> None:
    """Mark the samples whose threads ran far apart, by all rounds of a measurement so far and what is remembered.

    What is near is known from all samples, whichever contender's: it is the same small operation.
    """
    rounds = list(rounds)
    near_us = near_handover(
        (sample for r in rounds for tries in r.attempts.values() for sample in tries), remembered_us
    )
    for r in rounds:
        for name, tries in r.attempts.items():
            r.attempts[name] = [replace(sample, far=is_far(sample, near_us)) for sample in tries]


def ratios(rounds: Sequence[Round], one: str, other: str) -> Ratios:
    """The time of `one` over that of `other` in every round that counts, a list a launch."""
    both = with_samples(rounds, one, other)
    excluded = [r.sample(one).excluded or r.sample(other).excluded for r in both]
    one_ms, other_ms = ([r.median_ms(name) for r in both] for name in (one, other))
    return undisturbed_ratios([r.launch for r in both], one_ms, other_ms, excluded)


def with_samples(rounds: Sequence[Round], *names: str) -> list[Round]:
    """The rounds in which all of these contenders have a sample."""
    return [r for r in rounds if all(name in r.attempts for name in names)]


def contender_row(
    contender: ContenderSettings,
    baseline: str,
    size: int,
    rounds: Sequence[Round],
    launches: Sequence[Mapping[str, Launch]],
) -> dict[str, Any]:
    """The summary of one contender at one batch size, against the baseline.

    launches: of the processes, by contender. calm: whether all rounds that count
    for the speedup were undisturbed; None where the system does not report it. round_far: of each of
    its rounds, whether threads ran far apart meanwhile. round_number: which of the rounds at this
    batch size it has a sample in. launch_agreement: of the speedup (ratio_statistics.py).
    """
    name = contender.name
    shared, both = ratios(rounds, baseline, name), with_samples(rounds, baseline, name)
    rounds = with_samples(rounds, name)
    own = counted_rounds([r.launch for r in rounds], [r.sample(name).excluded for r in rounds])
    speedup, interval = paired_ratio(shared)
    return {
        "candidate": contender.candidate,
        "runtime": contender.way,
        "device": contender.device,
        "batch_size": size,
        "threads": contender.threads,
        "rounds": len(rounds),
        **_disturbance(rounds, both, name, baseline),
        **_times([value for n in own for value in rounds[n].sample(name).samples_ms]),
        **_warm_up([one[name] for one in launches if name in one and size in one[name].warmed], size),
        "speedup": speedup,
        "speedup_interval": list(interval) if interval else None,
        "baseline": baseline,
        "launch_agreement": launch_agreement(shared) if name != baseline else None,
        "round_number": [r.number for r in rounds],
        "round_p50_ms": [r.median_ms(name) for r in rounds],
        "round_launch": [r.launch for r in rounds],
        "round_disturbed": [r.sample(name).excluded for r in rounds],
        "round_far": [r.sample(name).far for r in rounds],
    }


def _disturbance(rounds: Sequence[Round], both: Sequence[Round], name: str, baseline: str) -> dict[str, Any]:
    """How many of a contender's rounds were disturbed, for it or the baseline, and whether those that count were not.

    both: the rounds in which the two have a sample.
    """
    disturbed = [r.sample(name).excluded or (baseline in r.attempts and r.sample(baseline).excluded) for r in rounds]
    of_both = [r.sample(name).excluded or r.sample(baseline).excluded for r in both]
    calm = not any(of_both[n] for n in counted_rounds([r.launch for r in both], of_both))
    known = all(r.sample(name).known for r in rounds)
    return {"disturbed_rounds": sum(disturbed), "calm": calm if known else None}


def _warm_up(launches: Sequence[Launch], size: int) -> dict[str, Any]:
    """Loading and warming up, of the launches of the contender that had this batch size."""
    warmed = [one.warmed[size] for one in launches]
    return {
        "first_ms": warmed[0].first_ms,
        "load_ms": float(np.median([one.loaded.load_ms for one in launches])),
        "peak_bytes": max(one.peak_bytes for one in warmed),
        "warmup_calls": max(one.calls for one in warmed),
        "warmup_stable": all(one.stable for one in warmed),
    }


def _times(values: list[float]) -> dict[str, Any]:
    """Mean, deviation and quantiles of single calls; None, with how many it takes, where there are too few."""
    return {
        "mean_ms": float(np.mean(values)),
        "std_ms": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "p50_ms": float(np.median(values)),
        "p90_ms": quantile(values, 0.9),
        "p99_ms": quantile(values, 0.99),
        "samples": len(values),
        "samples_needed": {"p90": samples_needed(0.9), "p99": samples_needed(0.99)},
    }


def samples(rounds: Sequence[Round], name: str) -> list[dict[str, Any]]:
    """Every sample of one contender, in order, the disturbed ones too."""
    return [
        {"round": number, "launch": r.launch, **asdict(sample)}
        for number, r in enumerate(rounds)
        if name in r.attempts
        for sample in r.attempts[name]
    ]
