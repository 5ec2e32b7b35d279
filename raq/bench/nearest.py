"""The shortest handover between threads that was seen here, kept from one measurement to the next.

Where a hypervisor keeps two CPUs apart for a whole measurement, nothing in it shows that: all its handovers are alike.
What an earlier one saw does. It is in the per-user cache, a file a machine, choice of CPUs and number of threads;
libraries, settings and boot of the machine belong to its name. It is forgotten when it was not seen again for a week.
"""

import hashlib
import json
import math
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from raq.bench.noise import Sample, near_handover
from raq.environment import cache_folder, machine, versions
from raq.store.files import write_json
from raq.store.views import View

KEPT = timedelta(days=7)
ALIKE = 1.25  # a handover within this factor of the one that is kept is the same one, seen again
MIN_SAMPLES = 20  # of fewer, the near ones may be a single wrong reading
BOOT = Path("/proc/sys/kernel/random/boot_id")
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError)
"""What a cache that is not there or damaged raises; RuntimeError is that of a user without a home."""


def file_of(cpus: Sequence[int], threads: int) -> Path:
    """Where the number of so many threads on these CPUs of this machine is. RuntimeError if the user has no home."""
    boot = BOOT.read_text().strip() if BOOT.is_file() else None
    known = [
        platform.node(),
        boot,
        machine().cpu,
        machine().settings,
        versions(("torch",)),
        sorted(cpus),
        threads,
    ]
    return cache_folder() / "handovers" / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:24]}.json"


class _Kept(View):
    near_us: float
    seen: datetime


def remembered(cpus: Sequence[int], threads: int) -> float | None:
    """Microseconds of the shortest handover that so many threads had here; None if none was seen in the last week."""
    with suppress(*UNREADABLE):
        found = _Kept.model_validate_json(file_of(cpus, threads).read_bytes())
        if math.isfinite(found.near_us) and found.near_us > 0 and abs(datetime.now(UTC) - found.seen) <= KEPT:
            return found.near_us
    return None


def remember(cpus: Sequence[int], threads: int, taken: Sequence[Sample]) -> None:
    """Keep what a measurement found near, if it is shorter than what is kept, or the same again.

    A cache that cannot be written is left: the next measurement then knows what it sees itself.
    """
    near_us = near_handover(taken)
    if near_us is None or near_us <= 0 or sum(sample.handover_us is not None for sample in taken) < MIN_SAMPLES:
        return
    before = remembered(cpus, threads)
    if before is not None and near_us > ALIKE * before:
        return
    shortest = near_us if before is None else min(near_us, before)
    with suppress(*UNREADABLE):
        file_of(cpus, threads).parent.mkdir(parents=True, exist_ok=True)
        write_json(file_of(cpus, threads), {"near_us": shortest, "seen": datetime.now(UTC).isoformat()})
