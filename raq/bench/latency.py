"""Latency of several contenders, side by side: each in a process of its own, rounds interleaved, one at a time.

Two runtimes in one process disturb one another by up to 40% (spinning thread pools), a shared machine drifts by tens of
percent within a minute, and a process may be faster than its twin for as long as it lives (where its memory lies): so
rounds of all contenders are interleaved, every two or so in new processes, and a speedup comes from the ratios
within rounds, a value a launch (ratio_statistics.py). The order in which a launch's processes start, are warmed up and
take their first samples is drawn for every other launch, and reversed for the next one; so is that of samples from
round to round. So each contender comes before each other one as often as after it: the one that always came first was
0.1% faster than its twin. FP32 in eager mode, the slowest to start and to run, has fewer samples: what is shipped is
decided between artifacts.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raq.bench import nearest, on_gpu
from raq.bench.clocks import cpu_state, cpu_times, pinned
from raq.bench.launcher import ContenderProcess, ForkServer, fork_server
from raq.bench.messages import ContenderSettings
from raq.bench.noise import Sample, classify, summary
from raq.bench.ratio_statistics import MIN_UNDISTURBED_LAUNCHES, paired_ratio, relative_half_width
from raq.bench.rows import Launch, Round, contender_row, mark_far, ratios, samples, with_samples
from raq.experiment.measurement import Bench

MIN_ROUNDS_A_LAUNCH, MAX_ROUNDS_A_LAUNCH = 2, 20
TIMING_OVER_LAUNCHING = 1.0  # how long the rounds of a launch may take, over what starting its processes took
PLANNED_LAUNCHES = 12  # the budget is enough for so many, or no launch has more than its two rounds
SPREAD = 1 / 3  # of the budget must have passed before precision ends a measurement: launches in a row agree by nature
MIN_EAGER_LAUNCHES = 8  # of eager mode, over the budget
EAGER_SHARE, MAX_EAGER_SHARE = 0.2, 0.35  # of the time: usually, and while it has not had its launches
WARM_UP_CAP_S, LATER_WARM_UP_CAP_S = 2.0, 0.2  # of the first launch, and of the others
MAX_ATTEMPTS = 6  # times a sample, while the time that all repetitions took is within their share of all time
REPEATING_SHARE, AT_FIRST_S = 0.5, 4.0
EVERY_SAMPLE = "samples"  # of what `measure` returns, the largest part
PAUSE_S = 0.05  # before a second attempt; doubled before each one after it


@dataclass
class Measurement:
    """All that was measured, as it grows."""

    contenders: Sequence[ContenderSettings]
    protocol: Bench
    cpus: Sequence[int]
    progress: Callable[[float, str], None]
    started: float = 0.0
    rounds: dict[int, list[Round]] = field(default_factory=dict)
    launches: list[dict[str, Launch]] = field(default_factory=list)
    clocks: list[dict[str, Any]] = field(default_factory=list)
    spent_s: dict[str, dict[str, float]] = field(default_factory=dict)
    order: random.Random = field(default_factory=random.Random)
    eager_too: bool = True
    sequence: list[ContenderSettings] = field(default_factory=list)
    repeating_s: float = 0.0
    stopped_by: str = ""
    near_us: float | None = None  # the shortest handover that earlier measurements saw on these CPUs

    @property
    def baseline(self) -> str:
        """The contender that the others are compared with: the first."""
        return self.contenders[0].name

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    @property
    def eager(self) -> str | None:
        """The contender that takes part in fewer launches: eager mode, where there are two others to decide between."""
        others = [c for c in self.contenders if c.runtime != "eager"]
        seldom = len(others) == len(self.contenders) - 1 >= 2 and self.contenders[0].runtime == "eager"
        return self.baseline if seldom and self.protocol.precision is not None else None

    def half_width(self, size: int) -> float | None:
        """The widest relative half width, at this batch size, of the comparisons that decide; None without an interval.

        Those are of each contender with the fastest FP32 and with the fastest of all, eager mode left aside where it
        has fewer samples and is not the fastest FP32; where nothing is FP32, with the baseline.
        """
        rounds, fp32 = self.rounds[size], {c.name for c in self.contenders if c.fp32}
        deciding = [c.name for c in self.contenders if c.name != self.eager]
        typical = {name: float(np.median([r.median_ms(name) for r in with_samples(rounds, name)])) for name in deciding}
        if self.eager is not None:
            eager_ms = float(np.median([r.median_ms(self.eager) for r in with_samples(rounds, self.eager)]))
            artifacts = [typical[name] for name in deciding if name in fp32]
            if not artifacts or eager_ms < min(artifacts):  # the fastest FP32 is eager mode, so it decides
                deciding.insert(0, self.eager)
                typical[self.eager] = eager_ms
        plain = [name for name in deciding if name in fp32] or [deciding[0]]
        rivals = {min(plain, key=typical.__getitem__), min(deciding, key=typical.__getitem__)}
        compared = {(one, other) for one in rivals for other in deciding if other != one}
        widths = [relative_half_width(paired_ratio(ratios(rounds, *pair))[1]) for pair in sorted(compared)]
        if self.eager is not None and paired_ratio(ratios(rounds, self.eager, plain[0]))[1] is None:
            return None
        return None if None in widths else max((width for width in widths if width is not None), default=0.0)

    def open_sizes(self) -> list[int]:
        """The batch sizes that need more rounds."""
        precision = self.protocol.precision
        if precision is not None and self.elapsed_s() < SPREAD * self.protocol.budget_s:
            return list(self.protocol.batch_sizes)
        undone = []
        for size in self.protocol.batch_sizes:
            width = 0.0 if precision is None else self.half_width(size)
            precise = width is not None and (precision is None or width <= precision)
            if len(self.rounds[size]) < self.protocol.rounds or not precise:
                undone.append(size)
        return undone

    def spent(self) -> bool:
        """Whether the time is up."""
        return self.elapsed_s() > self.protocol.budget_s

    def run(self, own: ForkServer) -> None:
        """Launch after launch, until the speedups are known to the precision asked for, or the time is up."""
        self.started = time.perf_counter()
        self.rounds = {size: [] for size in self.protocol.batch_sizes}
        self.sequence = list(self.contenders)
        sizes = list(self.protocol.batch_sizes)
        while sizes and not (self.launches and self.spent()):
            self._launch(own, sizes)
            # which handovers are short is known better with every round, and may change for earlier ones
            mark_far((r for rounds in self.rounds.values() for r in rounds), self.near_us)
            sizes = self.open_sizes()
        alone = len(self.contenders) == 1 or self.protocol.precision is None
        self.stopped_by = "budget" if sizes else "rounds" if alone else "precision"

    def _launch(self, own: ForkServer, sizes: Sequence[int]) -> None:
        """New processes for all contenders, loaded and warmed up one after the other, and rounds for as long."""
        number, began = len(self.launches), time.perf_counter()
        cap_s = LATER_WARM_UP_CAP_S if number else WARM_UP_CAP_S
        # the time goes to as many launches as are planned, before any of them gets more of it
        due_s = self.protocol.budget_s * min(1.0, (number + 1) / PLANNED_LAUNCHES)
        if number % 2 == 0:
            self.order.shuffle(self.sequence)
            self.eager_too = self.eager is not None and self._eager_is_due()
        else:
            self.sequence.reverse()
        entrants = [c for c in self.sequence if c.name != self.eager or self.eager_too]
        eager_round = self.order.randrange(MIN_ROUNDS_A_LAUNCH) if number else 0
        with ExitStack() as stack:
            processes: dict[str, ContenderProcess] = {}
            for contender in entrants:
                with self._spending(contender.name, "launching"):
                    processes[contender.name] = stack.enter_context(own.launch(contender, self.cpus))
            found = {name: Launch(process.loaded) for name, process in processes.items()}
            for size in sorted(sizes):  # so that the peak of memory is each size's own
                for name, process in processes.items():
                    with self._spending(name, "warming_up"):
                        found[name].warmed[size] = process.warm_up(size, self.protocol.warmup, cap_s)
            self.launches.append(found)
            ready = time.perf_counter()
            for done in range(self._rounds_left(sizes)):
                timing, launching = time.perf_counter() - ready, ready - began
                long_enough = timing > TIMING_OVER_LAUNCHING * launching or self.elapsed_s() > due_s
                if done >= MIN_ROUNDS_A_LAUNCH and done % 2 == 0 and long_enough:
                    break
                gpus = on_gpu.state(self.contenders[0].device)
                self.clocks.append(cpu_state(self.cpus, gpus))
                # eager mode has one sample a launch and size, in either round: the first is like the others
                present = {n: process for n, process in processes.items() if n != self.eager or done == eager_round}
                for size in sizes:
                    self.rounds[size].append(self._round(number, size, present, backwards=done % 2 == 1))
                if gpus:
                    on_gpu.judge((self.rounds[size][-1] for size in sizes), gpus, len(processes))
                self._tell()
                if self.spent():
                    break

    def _rounds_left(self, sizes: Sequence[int]) -> int:
        """How many rounds a launch may have: with no precision asked for, no more than `rounds` in all."""
        if self.protocol.precision is not None:
            return MAX_ROUNDS_A_LAUNCH
        left = self.protocol.rounds - min(len(self.rounds[size]) for size in sizes)
        return min(left, max(1, self.protocol.rounds // MIN_UNDISTURBED_LAUNCHES))

    def _eager_is_due(self) -> bool:
        """Whether eager mode takes part in the next two launches: it is behind its launches, or its share of time."""
        assert self.eager is not None
        had = sum(self.eager in launch for launch in self.launches)
        behind = had < MIN_EAGER_LAUNCHES * min(1.0, self.elapsed_s() / self.protocol.budget_s)
        spent = sum(self.spent_s.get(self.eager, {}).values()) / max(self.elapsed_s(), 1e-9)
        return not had or spent < (MAX_EAGER_SHARE if behind else EAGER_SHARE)

    @contextmanager
    def _spending(self, name: str, what: str) -> Iterator[None]:
        """Add the time of this block to what a contender took of the budget."""
        began = time.perf_counter()
        yield
        spent = self.spent_s.setdefault(name, {})
        spent[what] = spent.get(what, 0.0) + time.perf_counter() - began

    def _round(self, launch: int, size: int, processes: dict[str, ContenderProcess], backwards: bool) -> Round:
        """Every one of these contenders once, in their order or in the opposite one."""
        found = Round(launch, number=len(self.rounds[size]))
        names = list(processes)
        for name in reversed(names) if backwards else names:
            with self._spending(name, "timing"):
                found.attempts[name] = self._sample(processes[name], size)
        return found

    def _sample(self, process: ContenderProcess, size: int) -> list[Sample]:
        """Time one contender, again while it is disturbed and repetitions are within their share of the time."""
        taken: list[Sample] = []
        for attempt in range(MAX_ATTEMPTS):
            began = time.perf_counter()
            if attempt:
                time.sleep(PAUSE_S * 2 ** (attempt - 1))
            before = cpu_times(self.cpus)
            timed = process.time_round(size, self.protocol.repetitions, self.protocol.round_ms)
            taken.append(classify(timed, before, cpu_times(self.cpus), attempt))
            if attempt:
                self.repeating_s += time.perf_counter() - began
            if not taken[-1].disturbed or self.repeating_s > REPEATING_SHARE * max(self.elapsed_s(), AT_FIRST_S):
                break
        return taken

    def _tell(self) -> None:
        done = min(len(rounds) for rounds in self.rounds.values())
        by_time = self.elapsed_s() / self.protocol.budget_s
        share = by_time if self.protocol.precision is not None else max(by_time, done / self.protocol.rounds)
        self.progress(min(1.0, share), f"rounds done: {done}, launches: {len(self.launches)}")


def measure(
    contenders: Sequence[ContenderSettings],
    protocol: Bench,
    cpus: Sequence[int],
    progress: Callable[[float, str], None] = lambda share, text: None,
    started: ForkServer | None = None,
) -> dict[str, Any]:
    """Measure all contenders on these CPUs, against the first of them; times in milliseconds, all samples kept.

    Returns plain values: rows (one a contender and batch size); samples (by contender and batch size, every sample, the
    disturbed ones too); why the rounds ended; what is known of the noise. Raises StageError if a contender fails, or
    does not answer within ten minutes. started: the process to fork contenders from, if one on these CPUs is there.
    """
    assert len({c.name for c in contenders}) == len(contenders)
    threads = max(c.threads for c in contenders)
    found = Measurement(contenders, protocol, cpus, progress, near_us=nearest.remembered(cpus, threads))
    with pinned(cpus), nullcontext(started) if started else fork_server({c.runtime for c in contenders}) as own:
        if protocol.protocol == "published":
            _published(found, own)
        else:
            found.run(own)
    keys = [(c, size) for size in protocol.batch_sizes for c in contenders]
    every_round = [r for rounds in found.rounds.values() for r in rounds]
    taken = [sample for r in every_round for tries in r.attempts.values() for sample in tries]
    nearest.remember(cpus, threads, taken)
    return {
        "rows": [
            contender_row(contender, found.baseline, size, found.rounds[size], found.launches)
            for contender, size in keys
        ],
        EVERY_SAMPLE: {f"{c.name}/{size}": samples(found.rounds[size], c.name) for c, size in keys},
        "protocol": protocol.protocol,
        "stopped_by": found.stopped_by,
        "elapsed_s": round(found.elapsed_s(), 3),
        "launches": len(found.launches),
        "spent_s": {
            name: {what: round(seconds, 3) for what, seconds in sorted(spent.items())}
            for name, spent in sorted(found.spent_s.items())
        },
        "noise": {
            **summary(taken, found.near_us),
            "repeating_s": round(found.repeating_s, 3),
            "clocks": found.clocks,
        },
        "cpus": list(cpus),
    }


def _published(found: Measurement, own: ForkServer) -> None:
    """One contender after the other: `warmup` calls, `repetitions` timed ones; the protocol of published tables."""
    protocol = found.protocol
    found.started = time.perf_counter()
    found.rounds = {size: [Round(0)] for size in protocol.batch_sizes}
    found.launches.append({})
    for number, contender in enumerate(found.contenders):
        with own.launch(contender, found.cpus) as process:
            launch = found.launches[0].setdefault(contender.name, Launch(process.loaded))
            for size in sorted(protocol.batch_sizes):
                calls = protocol.warmup - 1  # the one before a round's timed ones is a warm-up too
                launch.warmed[size] = process.warm_up(size, calls, cap_s=0.0)
                found.clocks.append(cpu_state(found.cpus, on_gpu.state(contender.device)))
                before = cpu_times(found.cpus)
                timed = process.time_round(size, protocol.repetitions, round_ms=0.0)
                sample = classify(timed, before, cpu_times(found.cpus), 0)
                found.rounds[size][0].attempts[contender.name] = [sample]
        found.progress((number + 1) / len(found.contenders), f"{contender.name} done")
    mark_far((r for rounds in found.rounds.values() for r in rounds), found.near_us)
    found.stopped_by = "repetitions"
