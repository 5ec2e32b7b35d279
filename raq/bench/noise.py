"""Who else was at work while a contender was timed, and whether that spoils the times.

A sample is one contender's timed calls in one round. Four signs: how long the thread that waited longest could have run
and did not; how many CPUs others kept busy; how many the hypervisor gave to others (of the whole CPUs they are no
shares: one slow thread delays all, however many there are); and how long threads take to hand over to one another,
which shows where a hypervisor runs them. On a virtual machine of 2 CPUs that changes every minute or so, from 1.1 to
3.5 microseconds and back, for all processes at once and with no other sign; a network of many small operations then
takes 2.5 times as long in eager mode, and its int8 artifact 1.2 times.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from raq.bench.clocks import CpuTimes
from raq.bench.messages import Timed

# Above these a sample is disturbed. On an idle machine threads of a pool wait some percent of the time (they wake one
# another); beside a process that burns a CPU of theirs, for a quarter to a half.
MAX_WAITED, MAX_FOREIGN_CPUS, MAX_STOLEN_CPUS = 0.15, 0.3, 0.1
NEAR_QUANTILE, MAX_OVER_NEAR, MAX_BEYOND_NEAR_US = 0.05, 1.8, 1.0  # of the handovers of all samples of a measurement
# CPUs of one machine are not further apart than this: what takes longer is a thread that waited for its CPU.
MAX_FAR_US, MAX_FAR_OVER_NEAR = 20.0, 10.0
TICKS_OF_DOUBT = 3  # /proc/stat counts in ticks: so many may be the count's own error, not somebody's work
SIGNS = ("waited", "foreign_cpus", "stolen_cpus")


@dataclass(frozen=True)
class Sample:
    """Milliseconds of each call, and the signs of disturbance.

    waited: share of the time that the thread that waited longest waited; foreign_cpus, stolen_cpus: CPU seconds a
    second; None where the system does not report it. disturbed: by these. handover_us: microseconds, None where it was
    not measured; far: whether it is long, which is known when other samples are; gpu: what disturbed a GPU (on_gpu.py).
    """

    samples_ms: list[float]
    waited: float | None
    foreign_cpus: float | None
    stolen_cpus: float | None
    attempt: int
    disturbed: bool
    handover_us: float | None = None
    far: bool = False
    gpu: str = ""

    @property
    def excluded(self) -> bool:
        """Whether it does not count, while there are enough others."""
        return self.disturbed or self.far

    @property
    def known(self) -> bool:
        """Whether anything is known of disturbances."""
        return any(getattr(self, sign) is not None for sign in SIGNS)


def classify(timed: Timed, before: CpuTimes, after: CpuTimes, attempt: int) -> Sample:
    """A sample from what its process reported and the clocks of its CPUs around it."""
    wall_s = after.wall_s - before.wall_s
    waited = None if timed.waited_s is None else timed.waited_s / timed.wall_s
    foreign = stolen = None
    if before.busy_s is not None and after.busy_s is not None:
        foreign = max(0.0, after.busy_s - before.busy_s - timed.cpu_s) / wall_s
    if before.stolen_s is not None and after.stolen_s is not None:
        stolen = (after.stolen_s - before.stolen_s) / wall_s
    doubt = TICKS_OF_DOUBT / os.sysconf("SC_CLK_TCK") / wall_s
    disturbed = (
        (waited is not None and waited > MAX_WAITED)
        or (foreign is not None and foreign > max(MAX_FOREIGN_CPUS, doubt))
        or (stolen is not None and stolen > max(MAX_STOLEN_CPUS, doubt))
    )
    handover_us = timed.handover_us  # a difference of two times: of one that is not positive nothing is known
    known_us = handover_us if handover_us is not None and handover_us > 0 else None
    return Sample(timed.samples_ms, waited, foreign, stolen, attempt, disturbed, known_us)


def near_handover(taken: Iterable[Sample], remembered_us: float | None = None) -> float | None:
    """How long a handover takes when threads are near, in microseconds; None where none was measured.

    remembered_us: what an earlier measurement on this machine found, if one did; the shorter of both.
    """
    known = sorted(sample.handover_us for sample in taken if sample.handover_us is not None)
    if not known:
        return None
    near_us = known[int(NEAR_QUANTILE * len(known))]
    return near_us if remembered_us is None else min(near_us, remembered_us)


def is_far(sample: Sample, near_us: float | None) -> bool:
    """Whether its threads ran far from one another, against those that were near.

    Not where others disturbed it: a thread that waits for a CPU hands over late wherever it is.
    """
    if near_us is None or sample.handover_us is None or sample.disturbed:
        return False
    return is_long(sample.handover_us, near_us) and sample.handover_us <= max(MAX_FAR_US, MAX_FAR_OVER_NEAR * near_us)


def is_long(handover_us: float, near_us: float) -> bool:
    """Whether a handover is that of threads far from one another, where one of near ones takes so long."""
    return handover_us > max(MAX_OVER_NEAR * near_us, near_us + MAX_BEYOND_NEAR_US)


def summary(taken: list[Sample], remembered_us: float | None = None) -> dict[str, Any]:
    """The mean and largest of each sign over these samples (None where nothing is known), and how many were disturbed.

    remembered_us: the shortest handover of earlier measurements. handover_us.near is that of these samples alone.
    """
    found: dict[str, Any] = {}
    for sign in SIGNS:
        known = [value for sample in taken if (value := getattr(sample, sign)) is not None]
        found[sign] = {"mean": sum(known) / len(known), "max": max(known)} if known else None
    handovers = sorted(sample.handover_us for sample in taken if sample.handover_us is not None)
    near_us = near_handover(taken, remembered_us)
    handover = None
    if handovers:
        handover = {
            "near": near_handover(taken), "median": handovers[len(handovers) // 2], "most": handovers[-1],
            "remembered": remembered_us,
        }  # fmt: skip
    return {
        **found,
        "handover_us": handover,
        "gpus": sorted({sample.gpu for sample in taken if sample.gpu}),
        "far_apart_slots": sum(is_far(sample, near_us) for sample in taken),
        "slots": len(taken),
        "disturbed_slots": sum(sample.disturbed for sample in taken),
        "repeated_slots": sum(sample.attempt > 0 for sample in taken),
    }
