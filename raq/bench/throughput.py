"""Throughput: images a second of several processes at once, one thread and one CPU each (streams).

MLPerf Inference (Reddi et al. 2020, arXiv:1911.02549) has scenarios: "offline", where all images are there and what
counts is how many are done in a second, which is this; and "single-stream", one query after the other, which is the
latency of latency.py. Streams share nothing but the memory, so a batch of images is not split among threads that wait
for one another. Contenders take turns: the order is drawn for every other launch, and reversed for the next one; a
launch is one value, and ratios are of values within a launch.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from statistics import median
from typing import Any

from raq.bench.clocks import pinned
from raq.bench.launcher import ContenderProcess, ForkServer, fork_server
from raq.bench.messages import ContenderSettings, Timed
from raq.bench.ratio_statistics import paired_ratio
from raq.errors import UserError
from raq.experiment.measurement import Bench

SCENARIO = "offline"
LAUNCHES, WINDOW_MS, WARM_UP_CAP_S = 6, 500.0, 0.5
Rates = dict[tuple[str, int], list[float]]  # images a second, by contender and batch size, a value a launch


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
    started: ForkServer | None = None,
) -> list[dict[str, Any]]:
    """Measure the throughput of all contenders on a CPU; a row, as plain values, for each of them and batch size.

    The first contender is the baseline of speedups (its images a second, in the same launch). Raises UserError for more
    streams than CPUs, StageError if a contender fails.
    """
    count = stream_count(protocol, cpus)
    single = [replace(contender, threads=1) for contender in contenders]
    rates: Rates = {(contender.name, size): [] for contender in single for size in protocol.batch_sizes}
    order, sequence = random.Random(), list(single)
    with pinned(cpus), nullcontext(started) if started else fork_server({c.runtime for c in single}) as own:
        for number in range(LAUNCHES):
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


def _images_per_s(processes: Sequence[ContenderProcess], size: int, protocol: Bench) -> float:
    """Images a second of all of them at once: the sum of what each does while the others compute too."""

    def warm_up(process: ContenderProcess) -> None:
        process.warm_up(size, protocol.warmup, WARM_UP_CAP_S)

    def time_round(process: ContenderProcess) -> Timed:
        return process.time_round(size, protocol.repetitions, WINDOW_MS)

    with ThreadPoolExecutor(len(processes)) as at_once:
        list(at_once.map(warm_up, processes))
        timed = list(at_once.map(time_round, processes))
    return sum(1e3 * size * len(each.samples_ms) / sum(each.samples_ms) for each in timed)


def _row(
    contender: ContenderSettings, size: int, contenders: Sequence[ContenderSettings], rates: Rates, streams: int
) -> dict[str, Any]:
    """One contender at one batch size, against the baseline and the FP32 contender that does most."""
    own, baseline = rates[contender.name, size], contenders[0].name
    plain = max((c.name for c in contenders if c.fp32), key=lambda name: median(rates[name, size]), default=None)
    speedup, interval = _over(own, rates[baseline, size])
    over_best = (None, None) if plain is None else _over(own, rates[plain, size])
    return {
        "candidate": contender.candidate,
        "runtime": contender.runtime,
        "device": contender.device,
        "batch_size": size,
        "scenario": SCENARIO,
        "streams": streams,
        "images_per_s": median(own),
        "launch_images_per_s": own,
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
