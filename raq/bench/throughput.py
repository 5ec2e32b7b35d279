"""Throughput: images a second of several processes at once, one thread and one CPU each (streams).

After the scenarios of MLPerf Inference (Reddi et al. 2020, arXiv:1911.02549): "offline", where all images are there and
what counts is how many are done in a second, is like this; "single-stream", one query after the other, is like the
latency of latency.py. Streams share nothing but the machine, so no batch is split among threads that wait for one
another. Contenders take turns: the order is drawn for every other launch, and reversed for the next one; a launch is
one value, and ratios are of values within a launch.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from raq.bench.clocks import pinned
from raq.bench.launcher import ContenderProcess, ForkServer, fork_server
from raq.bench.messages import ContenderSettings
from raq.bench.ratio_statistics import paired_ratio
from raq.errors import UserError
from raq.experiment.measurement import Bench

SCENARIO = "offline"
LAUNCHES, WINDOW_MS, WARM_UP_CAP_S = 6, 500.0, 0.5
CALLS = 3  # of a batch that takes longer than the window


@dataclass(frozen=True)
class Rate:
    """Images a second of all streams in one launch; waited_share: of the time, most that one of them could have run."""

    images_per_s: float
    waited_share: float | None


Rates = dict[tuple[str, int], list[Rate]]  # by contender and batch size, a value a launch


def stream_count(protocol: Bench, cpus: Sequence[int]) -> int:
    """How many streams there are; UserError if that is more than there are CPUs."""
    if protocol.streams == "auto":
        return len(cpus)
    asked = protocol.streams or 0
    if asked > len(cpus):
        raise UserError(
            f"{asked} streams, and there are {len(cpus)} CPUs: each has one of its own", f"give at most {len(cpus)}"
        )
    return asked


def throughputs(
    contenders: Sequence[ContenderSettings],
    protocol: Bench,
    cpus: Sequence[int],
    progress: Callable[[float, str], None] = lambda share, text: None,
) -> list[dict[str, Any]]:
    """Measure the throughput of all contenders on a CPU; a row, as plain values, for each of them and batch size.

    The first contender is the baseline of speedups (its images a second, in the same launch). There are LAUNCHES, or as
    many pairs of them as begin within `budget_s`. Raises UserError for more streams than CPUs, StageError if a
    contender fails.
    """
    count = stream_count(protocol, cpus)
    single = [replace(contender, threads=1) for contender in contenders]
    rates: Rates = {(contender.name, size): [] for contender in single for size in protocol.batch_sizes}
    order, sequence, began = random.Random(), list(single), time.monotonic()
    with pinned(cpus), fork_server({c.runtime for c in single}) as own:
        for number in range(LAUNCHES):
            if number and number % 2 == 0 and time.monotonic() - began > protocol.budget_s:
                break
            order.shuffle(sequence) if number % 2 == 0 else sequence.reverse()
            for contender in sequence:
                with _launched(own, contender, cpus[:count]) as processes:
                    for size in sorted(protocol.batch_sizes):
                        rates[contender.name, size].append(_images_per_s(processes, size, protocol))
            progress((number + 1) / LAUNCHES, f"throughput, launch {number + 1} of {LAUNCHES}")
    return [_row(contender, size, single, rates, count) for size in protocol.batch_sizes for contender in single]


@contextmanager
def _launched(own: ForkServer, contender: ContenderSettings, cpus: Sequence[int]) -> Iterator[list[ContenderProcess]]:
    """A process of the contender on each of these CPUs, all of them loaded."""
    with ExitStack() as stack, ThreadPoolExecutor(len(cpus)) as at_once:
        yield list(at_once.map(lambda cpu: stack.enter_context(own.launch(contender, [cpu])), cpus))


def _images_per_s(processes: Sequence[ContenderProcess], size: int, protocol: Bench) -> Rate:
    """What all of them do at once, while none of them has ended."""

    def warm_up(process: ContenderProcess) -> float:
        process.warm_up(size, protocol.warmup, WARM_UP_CAP_S)
        return process.time_round(size, 1, 0.0).samples_ms[0]

    with ThreadPoolExecutor(len(processes)) as at_once:
        window_ms = max(WINDOW_MS, CALLS * max(at_once.map(warm_up, processes)))
        timed = list(at_once.map(lambda process: process.time_round(size, 1, window_ms), processes))
    common_ms = min(sum(each.samples_ms) for each in timed)
    done = sum(_calls_within(each.samples_ms, common_ms) for each in timed)
    waited = [each.waited_s / each.wall_s for each in timed if each.waited_s is not None]
    return Rate(1e3 * size * done / common_ms, max(waited, default=None))


def _calls_within(samples_ms: Sequence[float], limit_ms: float) -> float:
    """How many calls were done by then; of the one that was not, the part that was."""
    passed = 0.0
    for number, took in enumerate(samples_ms):
        if passed + took > limit_ms:
            return number + (limit_ms - passed) / took
        passed += took
    return len(samples_ms)


def _row(
    contender: ContenderSettings, size: int, contenders: Sequence[ContenderSettings], rates: Rates, streams: int
) -> dict[str, Any]:
    """One contender at one batch size, against the baseline and the FP32 contender that does most."""
    values = {c.name: [each.images_per_s for each in rates[c.name, size]] for c in contenders}
    own, baseline = values[contender.name], contenders[0].name
    plain = max((c.name for c in contenders if c.fp32), key=lambda name: median(values[name]), default=None)
    speedup, interval = _over(own, values[baseline])
    over_best = (None, None) if plain is None else _over(own, values[plain])
    waited = [each.waited_share for each in rates[contender.name, size] if each.waited_share is not None]
    return {
        "candidate": contender.candidate,
        "runtime": contender.runtime,
        "device": contender.device,
        "batch_size": size,
        "scenario": SCENARIO,
        "streams": streams,
        "images_per_s": median(own),
        "launch_images_per_s": own,
        "waited_share": median(waited) if waited else None,
        "speedup": speedup,
        "speedup_interval": interval,
        "baseline": baseline,
        "speedup_over_best_fp32": over_best[0],
        "speedup_over_best_fp32_interval": over_best[1],
        "best_fp32": plain,
    }


def _over(own: Sequence[float], other: Sequence[float]) -> tuple[float, list[float] | None]:
    """The ratio of two contenders' images a second, with its interval."""
    value, interval = paired_ratio([[one / two] for one, two in zip(own, other, strict=True)])
    return value, None if interval is None else list(interval)
