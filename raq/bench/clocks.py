"""The state of the CPUs during a measurement: which ones, and who else uses them. Reads /proc and /sys on Linux.

What a system does not report is None; nothing is guessed.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, NICE, SYSTEM, IRQ, SOFTIRQ, STEAL = 0, 1, 2, 5, 6, 7  # columns of /proc/stat, in clock ticks


@contextmanager
def pinned(cpus: Sequence[int]) -> Iterator[None]:
    """Run this thread, and the threads and children it starts, on these CPUs (where the system has affinities)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cpus))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def load_average() -> float | None:
    """Runnable processes, mean of the last minute; None where the system does not report it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


@dataclass(frozen=True)
class Elapsed:
    """Wall time, CPU time and run-queue wait between two readings. waited_s: of the thread that waited longest."""

    wall_s: float
    cpu_s: float
    waited_s: float | None


@dataclass(frozen=True)
class OwnTimes:
    """A process's clocks: wall and CPU time of all threads, and by thread the time spent runnable but waiting for a
    CPU."""

    wall_s: float
    cpu_s: float
    waited_s: dict[str, float] | None

    def since(self, before: "OwnTimes") -> "Elapsed":
        """The seconds from `before` to now."""
        longest = None
        if self.waited_s is not None and before.waited_s is not None:
            waits = [waited - before.waited_s.get(task, 0.0) for task, waited in self.waited_s.items()]
            longest = max(waits, default=0.0)
        return Elapsed(self.wall_s - before.wall_s, self.cpu_s - before.cpu_s, longest)


def own_times() -> OwnTimes:
    """This process's clocks now. Waiting is the run delay of /proc/self/task/*/schedstat, in nanoseconds there."""
    waited: dict[str, float] | None = None
    tasks = Path("/proc/self/task")
    if (tasks.parent / "schedstat").is_file():
        waited = {}
        for task in tasks.iterdir():
            with suppress(OSError):  # a thread that ended meanwhile
                waited[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return OwnTimes(time.perf_counter(), time.process_time(), waited)


@dataclass(frozen=True)
class CpuTimes:
    """Busy and steal time summed over some CPUs, in seconds, and the wall time of the reading."""

    wall_s: float
    busy_s: float | None
    stolen_s: float | None


def cpu_times(cpus: Sequence[int]) -> CpuTimes:
    """The clocks of these CPUs now, from /proc/stat, whose ticks are a hundredth of a second on most systems."""
    now = time.perf_counter()
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return CpuTimes(now, None, None)
    tick = 1 / os.sysconf("SC_CLK_TCK")
    wanted = {f"cpu{cpu}" for cpu in cpus}
    rows = [[int(field) for field in line.split()[1:]] for line in lines if line.split(" ", 1)[0] in wanted]
    if len(rows) != len(wanted):  # a container that numbers its CPUs in another way
        return CpuTimes(now, None, None)
    busy = sum(row[column] for row in rows for column in (USER, NICE, SYSTEM, IRQ, SOFTIRQ))
    return CpuTimes(now, busy * tick, sum(row[STEAL] for row in rows) * tick)


def cpu_state(cpus: Sequence[int], gpus: list[dict[str, Any]] | None) -> dict[str, Any]:
    """Mean frequency of these CPUs in MHz, thermal throttling events so far, load; beside that of GPUs, if measured."""
    frequencies = [_number(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus]
    throttled = [_number(f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count") for cpu in cpus]
    known = [value for value in frequencies if value is not None]
    counts = [value for value in throttled if value is not None]
    return {
        "mhz": sum(known) / len(known) / 1000 if known else None,
        "throttled": sum(counts) if counts else None,
        "load_average": load_average(),
        "gpus": gpus,
    }


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):
        return None
