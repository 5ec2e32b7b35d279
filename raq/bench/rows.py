"""What a measurement comes to: a row a contender and batch size, from its rounds. Times in milliseconds."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from raq.bench.launcher import ContenderSettings
from raq.bench.noise import Sample, is_far, near_handover
from raq.bench.ratio_statistics import (
    Ratios,
    calm_ratios,
    counted_rounds,
    launch_agreement,
    paired_ratio,
    quantile,
    samples_needed,
)


@dataclass
class Round:
    """One turn of contenders at one batch size. attempts: every slot by contender, the accepted one last.

    number: of the round, at this batch size. Not every contender has a turn in every round.
    """

    launch: int
    attempts: dict[str, list[Sample]] = field(default_factory=dict)
    number: int = 0

    def slot(self, name: str) -> Sample:
        """The slot that counts."""
        return self.attempts[name][-1]

    def median_ms(self, name: str) -> float:
        """Of the slot that counts."""
        return float(np.median(self.slot(name).samples_ms))


def mark_far(rounds: Iterable[Round], remembered_us: float | None = None) -> None:
    """Mark the slots whose threads ran far apart, by all rounds of a measurement so far and what is remembered.

    What is near is known from all slots, whichever contender's: it is the same small operation.
    """
    rounds = list(rounds)
    near_us = near_handover((slot for r in rounds for tries in r.attempts.values() for slot in tries), remembered_us)
    for r in rounds:
        for name, tries in r.attempts.items():
            r.attempts[name] = [replace(slot, far=is_far(slot, near_us)) for slot in tries]


def ratios(rounds: Sequence[Round], one: str, other: str) -> Ratios:
    """The time of `one` over that of `other` in every round that counts, a list a launch."""
    both = with_turns(rounds, one, other)
    spoilt = [r.slot(one).spoilt or r.slot(other).spoilt for r in both]
    one_ms, other_ms = ([r.median_ms(name) for r in both] for name in (one, other))
    return calm_ratios([r.launch for r in both], one_ms, other_ms, spoilt)


def with_turns(rounds: Sequence[Round], *names: str) -> list[Round]:
    """The rounds in which all of these contenders had a turn."""
    return [r for r in rounds if all(name in r.attempts for name in names)]


def contender_row(
    contender: ContenderSettings,
    baseline: str,
    size: int,
    rounds: Sequence[Round],
    launches: Sequence[dict[str, dict[str, Any]]],
) -> dict[str, Any]:
    """The summary of one contender at one batch size, against the baseline.

    launches: by contender, what its process told when it was loaded and warmed up. calm: whether all rounds that count
    for the speedup were undisturbed; None where the system does not tell. round_far: of each of
    its rounds, whether threads ran far apart in its turn. round_number: which of the rounds at this
    batch size it had a turn in. launch_agreement: of the speedup (statistics.py).
    """
    name = contender.name
    shared, both = ratios(rounds, baseline, name), with_turns(rounds, baseline, name)
    rounds = with_turns(rounds, name)
    own = counted_rounds([r.launch for r in rounds], [r.slot(name).spoilt for r in rounds])
    speedup, interval = paired_ratio(shared)
    candidate, _, runtime = name.partition("/")
    return {
        "candidate": candidate,
        "runtime": runtime,
        "device": contender.device,
        "batch_size": size,
        "threads": contender.threads,
        "rounds": len(rounds),
        **_disturbance(rounds, both, name, baseline),
        **_times([value for n in own for value in rounds[n].slot(name).samples_ms]),
        **_warm_up([one[name] for one in launches if str(size) in one.get(name, {})], size),
        "speedup": speedup,
        "speedup_interval": list(interval) if interval else None,
        "baseline": baseline,
        "launch_agreement": launch_agreement(shared) if name != baseline else None,
        "round_number": [r.number for r in rounds],
        "round_p50_ms": [r.median_ms(name) for r in rounds],
        "round_launch": [r.launch for r in rounds],
        "round_disturbed": [r.slot(name).spoilt for r in rounds],
        "round_far": [r.slot(name).far for r in rounds],
    }


def _disturbance(rounds: Sequence[Round], both: Sequence[Round], name: str, baseline: str) -> dict[str, Any]:
    """How many of a contender's rounds were disturbed, for it or the baseline, and whether those that count were not.

    both: the rounds in which the two had a turn.
    """
    disturbed = [r.slot(name).spoilt or (baseline in r.attempts and r.slot(baseline).spoilt) for r in rounds]
    of_both = [r.slot(name).spoilt or r.slot(baseline).spoilt for r in both]
    calm = not any(of_both[n] for n in counted_rounds([r.launch for r in both], of_both))
    known = all(r.slot(name).known for r in rounds)
    return {"disturbed_rounds": sum(disturbed), "calm": calm if known else None}


def _warm_up(launches: Sequence[dict[str, Any]], size: int) -> dict[str, Any]:
    """Loading and warming up, from what the contender's process told at each launch that had this batch size."""
    warmed = [one[str(size)] for one in launches]
    return {
        "first_ms": warmed[0]["first_ms"],
        "load_ms": float(np.median([one["load_ms"] for one in launches])),
        "peak_bytes": max(one["peak_bytes"] for one in warmed),
        "warmup_calls": max(one["calls"] for one in warmed),
        "warmup_stable": all(one["stable"] for one in warmed),
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
    """Every slot of one contender, in order, the disturbed ones too."""
    return [
        {"round": number, "launch": r.launch, **asdict(slot)}
        for number, r in enumerate(rounds)
        if name in r.attempts
        for slot in r.attempts[name]
    ]
