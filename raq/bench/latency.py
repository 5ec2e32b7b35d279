"""Latency of several contenders, side by side: each in a process of its own, rounds interleaved, one at a time.

Two runtimes in one process disturb one another by up to 40% (spinning thread pools), and a shared machine drifts by
tens of percent within a minute: so contenders take turns round by round, in alternating order, and a speedup is the
median of the ratios within rounds.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np

from raq.bench.machine import load_average, pinned
from raq.bench.statistics import median_interval, quantile
from raq.errors import StageError
from raq.experiment import Bench

ANSWER_TIMEOUT_S = 600.0
BASELINE = "fp32/eager"


@dataclass(frozen=True)
class ContenderSettings:
    """What is measured. name: candidate/runtime; path: artifact, or weights for eager; image_shape: [3, H, W]."""

    name: str
    runtime: str
    device: str
    path: str
    image_shape: tuple[int, ...]
    threads: int
    model: str
    classes: int
    working_directory: str | None


Samples = dict[tuple[str, int], list[list[float]]]


def measure(
    contenders: Sequence[ContenderSettings],
    protocol: Bench,
    cpus: Sequence[int],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Measure all contenders on these CPUs; times in milliseconds, all samples kept.

    Returns rows (one a contender and batch size), the load average before and after, and what each process said when
    it loaded. Raises StageError if a contender fails, or does not answer within ten minutes.
    """
    before = load_average()
    with pinned(cpus), _processes(contenders) as processes:
        loaded = {}
        for contender in contenders:  # one after the other: loading two at a time would slow both
            reply = processes[contender.name].ask(do="load", contender=asdict(contender))
            if reply["threads"] != contender.threads:
                raise StageError(
                    f"{contender.name} runs {reply['threads']} threads, not {contender.threads}", "set bench.threads"
                )
            loaded[contender.name] = reply
        first = {
            (contender.name, size): processes[contender.name].ask(do="warm_up", batch_size=size, calls=protocol.warmup)[
                "first_ms"
            ]
            for size in protocol.batch_sizes
            for contender in contenders
        }
        samples: Samples = {key: [] for key in first}
        for number in range(protocol.rounds):
            for size in protocol.batch_sizes:
                for contender in contenders if number % 2 == 0 else reversed(contenders):
                    reply = processes[contender.name].ask(
                        do="round", batch_size=size, repetitions=protocol.repetitions, round_ms=protocol.round_ms
                    )
                    samples[contender.name, size].append(reply["samples_ms"])
            progress(number + 1)
    rows = [
        _row(contender, size, samples, first[contender.name, size], loaded[contender.name]["load_ms"])
        for size in protocol.batch_sizes
        for contender in contenders
    ]
    return {"rows": rows, "load_average": [before, load_average()], "cpus": list(cpus)}


def _row(contender: ContenderSettings, size: int, samples: Samples, first_ms: float, load_ms: float) -> dict[str, Any]:
    """The summary of one contender and batch size, with its raw samples by round."""
    rounds = samples[contender.name, size]
    values = [value for one_round in rounds for value in one_round]
    speedup, interval = None, None
    if (BASELINE, size) in samples:
        ratios = [float(np.median(b) / np.median(c)) for b, c in zip(samples[BASELINE, size], rounds, strict=True)]
        speedup = float(np.median(ratios))
        interval = median_interval(ratios) if contender.name != BASELINE else (1.0, 1.0)
    candidate, _, runtime = contender.name.partition("/")
    return {
        "candidate": candidate,
        "runtime": runtime,
        "device": contender.device,
        "batch_size": size,
        "threads": contender.threads,
        "rounds": len(rounds),
        "mean_ms": float(np.mean(values)),
        "std_ms": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "p50_ms": float(np.median(values)),
        "p90_ms": quantile(values, 0.9),
        "p99_ms": quantile(values, 0.99),
        "samples": len(values),
        "first_ms": first_ms,
        "load_ms": load_ms,
        "speedup": speedup,
        "speedup_interval": list(interval) if interval else None,
        "baseline": BASELINE,
        "round_p50_ms": [float(np.median(one_round)) for one_round in rounds],
        "samples_ms": rounds,
    }


class _Process:
    """The parent's end of one contender's process."""

    def __init__(self, name: str, child: "subprocess.Popen[str]") -> None:
        self.name = name
        self.child = child

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and sleep until its answer is there."""
        try:
            _pipe(self.child.stdin).write(json.dumps(command) + "\n")
            _pipe(self.child.stdin).flush()
        except BrokenPipeError:
            raise StageError(f"{self.name}: its process ended (exit code {self.child.wait()})", "see the log") from None
        with selectors.DefaultSelector() as selector:
            selector.register(_pipe(self.child.stdout), selectors.EVENT_READ)
            if not selector.select(ANSWER_TIMEOUT_S):
                raise StageError(
                    f"{self.name}: no answer in {ANSWER_TIMEOUT_S:.0f} s", "lower bench.round_ms or repetitions"
                )
        line = _pipe(self.child.stdout).readline()
        if not line:
            raise StageError(f"{self.name}: its process ended (exit code {self.child.wait()})", "see the log")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise StageError(f"{self.name}: {reply['error']}", reply["hint"])
        return reply


@contextmanager
def _processes(contenders: Sequence[ContenderSettings]) -> Iterator[dict[str, _Process]]:
    """A process for each contender, ended on the way out."""
    running: dict[str, _Process] = {}
    # torch unpacks packages there, and a process that is killed does not tidy up
    scratch = tempfile.TemporaryDirectory(prefix="raq-bench-", ignore_cleanup_errors=True)
    try:
        for contender in contenders:
            child = subprocess.Popen(
                [sys.executable, "-m", "raq.bench.runtimes"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "TMPDIR": scratch.name},
            )  # fmt: skip
            running[contender.name] = _Process(contender.name, child)
        yield running
    finally:
        for process in running.values():
            process.child.kill()
            process.child.wait()
            _pipe(process.child.stdout).close()
        scratch.cleanup()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe
