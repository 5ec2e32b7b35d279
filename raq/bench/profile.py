"""Where an artifact's time goes, by layer and kernel, and how near its kernels come to the CPU's peak.

`raq profile` times calls as `raq bench` does; in a run it is done for every artifact, whose times are known. Then the
artifact runs in another process, where oneDNN reports what it executes and for how long: what a call takes beyond that
is in no kernel of oneDNN (Inductor's own loops, allocation, the runtime itself). An artifact is native code: profiling
it loads and runs it.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raq.artifact.check import layers_of_code
from raq.artifact.executed import HALVES, MULTIPLYING, Execution, KnownLayer, read_calls
from raq.artifact.isolated import IsolatedProcess
from raq.artifact.runtimes import RUNTIMES, read, read_metadata, runtime_of_file
from raq.bench.launcher import fork_server
from raq.bench.messages import ContenderSettings
from raq.bench.peak import Peak, measure_peak
from raq.environment import available_cpus
from raq.errors import UserError
from raq.experiment.inputs import Inputs
from raq.model.inputs import random_inputs
from raq.store.views import View, view

MAX_LOADED = 4  # processes at a time
WARM_UP_CALLS, CALLS, ROUND_MS = 5, 20, 500.0
MIN_TRACED, TRACED_S = 4, 3.0  # calls of one batch size: at least so many, and no more once they have taken this long


@dataclass(frozen=True)
class KernelTime:
    """A primitive that oneDNN executed. ms: the median over calls; gops: of its arithmetic, two a multiply-accumulate.

    layer: whose it is, None if it is none's (a reorder, an addition) or not known; int8: whether it multiplied
    integers; dtype: of what it reads; macs: of the whole batch, of what multiplies; peak_share: gops over what this CPU
    can do at most, None where that is not known.
    """

    layer: str | None
    primitive: str
    implementation: str
    int8: bool
    dtype: str
    macs: int | None
    ms: float
    gops: float | None
    peak_share: float | None


@dataclass(frozen=True)
class Profile:
    """Where the time of a call goes, in milliseconds.

    Kernels are timed in another process than calls: in one where the CPUs were slower, they may come to more than a
    call, and elsewhere_ms to less than nothing.

    call_ms: the median of calls without reports; kernels: in the order of execution; multiplying_ms: of those that
    multiply; reorder_ms: of reorders; elsewhere_ms: of a call, beyond oneDNN's kernels; gops: of all
    multiply-accumulates of a call over its whole time; peak: of this CPU.
    """

    path: str
    batch_size: int
    threads: int
    calls: int
    call_ms: float
    multiplying_ms: float
    reorder_ms: float
    other_kernels_ms: float
    elsewhere_ms: float
    reorders: int
    gops: float | None
    peak: Peak
    kernels: list[KernelTime] = field(default_factory=list)

    @property
    def peak_gops(self) -> float | None:
        """The CPU's peak for what the artifact's layers compute in: int8 if any does; None if any does in 16 bits."""
        if any(kernel.dtype in HALVES for kernel in self.kernels):
            return None  # it is not measured
        return self.peak.int8_gops if any(kernel.int8 for kernel in self.kernels) else self.peak.fp32_gops

    def as_record(self) -> dict[str, Any]:
        """As plain values: what `raq profile --json` prints. other_ms: of a call, beyond its layers' kernels."""
        layers = [kernel for kernel in self.kernels if kernel.primitive in MULTIPLYING]
        return {
            "path": self.path, "batch_size": self.batch_size, "threads": self.threads, "calls": self.calls,
            "total_ms": self.call_ms,
            "layers": [
                {
                    "name": kernel.layer, "kernel": kernel.implementation, "dtype": kernel.dtype, "ms": kernel.ms,
                    "macs": kernel.macs, "gops": kernel.gops, "peak_share": kernel.peak_share,
                }
                for kernel in layers
            ],
            "other_ms": self.call_ms - self.multiplying_ms, "reorder_ms": self.reorder_ms,
            "other_kernels_ms": self.other_kernels_ms, "outside_onednn_ms": self.elsewhere_ms,
            "reorders_per_call": self.reorders, "gops": self.gops, "peak_gops": self.peak_gops,
            "peaks": self.peak.as_record(),
        }  # fmt: skip


def profile(path: Path, batch_size: int, threads: int | None = None) -> Profile:
    """Profile an artifact at a batch size, on so many threads (default: all CPUs of this process).

    Raises UserError if there is no such file, if it is not for a CPU, or if its runtime does not report kernels;
    StageError if it does not run.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file", "give the path of an artifact (.pt2)")
    runtime = runtime_of_file(path)
    metadata = read_metadata(path)
    if runtime.reports != "onednn" or metadata.device != "cpu":
        raise UserError(f"{path}: what runs in it is not reported", "profile a package of Inductor for a CPU")
    inputs = metadata.inputs
    if inputs is None:
        raise UserError(f"{path}: the size of its input is not known (raq did not make it)", "profile one of raq's")
    used = threads or len(available_cpus())
    settings = ContenderSettings("artifact", runtime.name, "cpu", str(path), inputs, used, "", 0, None)
    with fork_server({runtime.name}) as server, server.launch(settings, available_cpus()) as contender:
        contender.warm_up(batch_size, WARM_UP_CALLS, cap_s=2.0)
        plain = contender.time_round(batch_size, CALLS, round_ms=ROUND_MS).samples_ms
    with _isolated(settings) as process:
        calls = _traced_calls(process, inputs, [batch_size])[batch_size]
    return _profile(str(path), batch_size, used, plain, calls, _layers(path), measure_peak(used))


class _Timed(View):
    """Of a row of a measurement, what a call took."""

    candidate: str
    runtime: str
    batch_size: int
    p50_ms: float


class _Rows(View):
    rows: list[_Timed]


def profiles(
    contenders: Iterable[ContenderSettings], measured: dict[str, Any], sizes: Sequence[int]
) -> list[dict[str, Any]]:
    """The profiles of those artifacts on a CPU whose kernels oneDNN reports, as plain values, at every batch size.

    measured: the results of their measurement, which say what a call took. Each is as `Profile.as_record`, with
    `candidate` and `runtime` in place of the path. Raises StageError if one does not run.
    """
    timed = view(_Rows, measured, "the measurement").rows
    call_ms = {(row.candidate, row.runtime, row.batch_size): row.p50_ms for row in timed}
    able = [each for each in contenders if each.device == "cpu" and _reports_kernels(each.runtime)]
    found: list[dict[str, Any]] = []
    if not able:
        return found
    peak = measure_peak(able[0].threads)
    for first in range(0, len(able), MAX_LOADED):
        part = able[first : first + MAX_LOADED]
        with ExitStack() as stack:
            with ThreadPoolExecutor(len(part)) as loaders:  # most of the time goes into loading
                processes = list(loaders.map(stack.enter_context, map(_isolated, part)))
            for contender, process in zip(part, processes, strict=True):
                traced, layers = _traced_calls(process, contender.inputs, sizes), _layers(Path(contender.path))
                for size in sizes:
                    plain = [call_ms[contender.candidate, contender.runtime, size]]
                    record = _profile("", size, contender.threads, plain, traced[size], layers, peak).as_record()
                    del record["path"]
                    found.append({"candidate": contender.candidate, "runtime": contender.runtime, **record})
    return found


def _reports_kernels(runtime: str) -> bool:
    """Whether oneDNN reports what a runtime executes."""
    return runtime in RUNTIMES and RUNTIMES[runtime].reports == "onednn"


def _isolated(contender: ContenderSettings) -> IsolatedProcess:
    """The process, not yet started, in which an artifact runs alone."""
    return IsolatedProcess(Path(contender.path), "cpu", contender.threads, RUNTIMES[contender.runtime])


def _layers(path: Path) -> list[KnownLayer]:
    """The layers of an artifact whose arithmetic is known, by its code."""
    return [KnownLayer(layer.name, layer.macs) for layer in layers_of_code(read(path)) if layer.macs is not None]


def _traced_calls(process: IsolatedProcess, inputs: Inputs, sizes: Sequence[int]) -> dict[int, list[list[Execution]]]:
    """What oneDNN reports of calls of each batch size, those at the beginning left out: they may build kernels."""
    for size in sizes:
        given = random_inputs(inputs, size)
        started = time.perf_counter()
        for number in range(WARM_UP_CALLS + CALLS):
            if number >= MIN_TRACED and time.perf_counter() - started > TRACED_S:
                break
            process(*given, traced=True)
    reported = read_calls(process.log(), process.mark)
    calls = {size: [executions for of, executions in reported if of == size] for size in sizes}
    return {size: [call for call in own[len(own) // 2 :] if len(call) == len(own[-1])] for size, own in calls.items()}


def _profile(
    path: str,
    batch_size: int,
    threads: int,
    plain: list[float],
    calls: list[list[Execution]],
    layers: list[KnownLayer],
    peak: Peak,
) -> Profile:
    """The profile of calls that executed the same."""
    kernels: list[KernelTime] = []
    left = list(layers)
    for same in zip(*calls, strict=True):
        one, ms = same[0], statistics.median(execution.ms or 0.0 for execution in same)
        layer = None
        if one.primitive in MULTIPLYING:
            layer = next((known for known in left if known.macs * batch_size == one.macs), None)
            if layer is not None:
                left.remove(layer)
        gops = 2 * one.macs / ms / 1e6 if one.macs and ms > 0 else None
        most = None if one.half else peak.int8_gops if one.integer else peak.fp32_gops
        kernels.append(
            KernelTime(
                None if layer is None else layer.name, one.primitive, one.implementation, one.integer, one.source,
                one.macs if one.primitive in MULTIPLYING else None, ms, gops,
                None if gops is None or most is None else gops / most,
            )
        )  # fmt: skip
    sums = {
        what: sum(kernel.ms for kernel in kernels if _kind(kernel) == what)
        for what in ("multiplying", "reorder", "other")
    }
    call_ms = statistics.median(plain)
    macs = sum(execution.macs or 0 for execution in calls[-1]) if calls else 0
    return Profile(
        path=path, batch_size=batch_size, threads=threads, calls=len(calls), call_ms=call_ms,
        multiplying_ms=sums["multiplying"], reorder_ms=sums["reorder"], other_kernels_ms=sums["other"],
        elsewhere_ms=call_ms - sum(sums.values()),
        reorders=sum(kernel.primitive == "reorder" for kernel in kernels),
        gops=2 * macs / call_ms / 1e6 if macs else None, peak=peak, kernels=kernels,
    )  # fmt: skip


def _kind(kernel: KernelTime) -> str:
    if kernel.primitive == "reorder":
        return "reorder"
    return "multiplying" if kernel.primitive in MULTIPLYING else "other"
