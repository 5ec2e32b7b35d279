"""Contenders, each in a process of its own: `python -m raq.bench.contender FD [FUNCTION...]`.

This process imports torch once, and the FUNCTIONs that load artifacts, calls those that end in "()", which import the
libraries of runtimes, and forks for every contender: all start from the same libraries at the same addresses, and a new
launch costs what loading the artifact costs. It takes one socket for each contender over the Unix socket FD; the child
answers one message after the other there (messages.py), sleeps in a read between them, so that it takes nothing from
the contender that is being timed, and ends with its socket.
"""

import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from raq.bench import on_gpu
from raq.bench.clocks import own_times
from raq.bench.messages import (
    Command,
    ContenderSettings,
    Failed,
    Load,
    Loaded,
    Reply,
    Timed,
    Warmed,
    WarmUp,
    decode,
    encode,
)
from raq.errors import RaqError, first_line
from raq.lazy import resolve
from raq.model.inputs import random_inputs
from raq.model.zoo import build_network, load_state, load_weights

ONE_THREADS, HAND_OVERS = 32_000, 20  # floats that one thread adds alone (torch shares from 32,768 on); times
Network = Callable[..., Tensor]
Inputs = tuple[Tensor, ...]
ROTATED_INPUTS = 4
STABLE_CALLS, STABLE_WITHIN = 5, 0.02
SETTLED_NS, SETTLE_STEP_S, SETTLE_CAP_S = 200_000, 0.002, 0.25


def load_eager(contender: ContenderSettings) -> Network:
    """The FP32 network as PyTorch runs it without a compiler."""
    model = build_network(
        contender.model, contender.classes, contender.inputs, contender.output, contender.working_directory
    )
    load_state(model, load_weights(Path(contender.path)), contender.model, contender.path)
    return model.eval().to(contender.device)


class Contender:
    """What this process measures: the loaded network and its inputs."""

    def __init__(self, asked: Load) -> None:
        torch.set_num_threads(asked.threads)
        self.device = torch.device(asked.device)
        self.asked, self.graph = asked.inputs, asked.graph
        self.replays: dict[int, Network] = {}
        self.gpu_bytes = 0
        if self.device.type == "cuda":
            on_gpu.allow_tf32(asked.tf32)
            torch.zeros(1, device=self.device)  # starting CUDA is not loading the artifact
        if asked.prepare is not None:
            resolve(asked.prepare)()  # importing its libraries is not loading the artifact
        load = None if asked.load is None else resolve(asked.load)
        started = time.perf_counter_ns()
        with self._using_memory():
            self.network: Network = load_eager(asked) if load is None else load(Path(asked.path), asked.threads)
        self.load_ms = (time.perf_counter_ns() - started) / 1e6
        self.inputs: dict[int, list[Inputs]] = {}
        self.small: list[Tensor] = []

    def warm_up(self, batch_size: int, calls: int, cap_s: float) -> Warmed:
        """Make the inputs for a batch size and call until times are stable.

        Stable: the median of the last 5 calls is within 2% of that of the 5 before, after at least `calls` calls, the
        first one among them. Ends after `cap_s` seconds in any case (never before `calls`, or one).
        """
        # several inputs, taken in turn, so that the caches do not hold the answer's input
        self.inputs[batch_size] = [
            tuple(one.to(self.device) for one in random_inputs(self.asked, batch_size, seed))
            for seed in range(ROTATED_INPUTS)
        ]
        begun = time.perf_counter()
        with self._using_memory():
            times = [self._call(self.inputs[batch_size][0])]
            if self.graph:
                self.replays[batch_size] = on_gpu.captured(self.network, self.inputs[batch_size][0])
            while not (stable := _stable(times[1:])) or len(times) < calls:
                if len(times) >= calls and time.perf_counter() - begun > cap_s:
                    break
                times.append(self._call(self.inputs[batch_size][len(times) % ROTATED_INPUTS]))
        settle()
        peak = self.gpu_bytes if self.device.type == "cuda" else _peak_bytes()
        return Warmed(times[0], len(times), stable, peak)

    @contextmanager
    def _using_memory(self) -> Iterator[None]:
        """Add what a GPU's memory is used more after this block; one contender at a time loads and warms up."""
        before = on_gpu.used_bytes(self.device) if self.device.type == "cuda" else 0
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.gpu_bytes += max(0, on_gpu.used_bytes(self.device) - before)

    def round(self, batch_size: int, repetitions: int, round_ms: float) -> list[float]:
        """Milliseconds of each call: at least `repetitions` calls and `round_ms` milliseconds of them.

        One call before is not timed: it wakes threads that sleep since the last round, and finds the caches cold.
        """
        self._call(self.inputs[batch_size][-1])
        samples: list[float] = []
        while len(samples) < repetitions or sum(samples) < round_ms:
            samples.append(self._call(self.inputs[batch_size][len(samples) % ROTATED_INPUTS]))
        return samples

    def handover_us(self) -> float | None:
        """Microseconds to share an operation between threads, beyond each one's part; None with one, or on a GPU.

        It shows how near to one another the CPUs are at which these threads run: a hypervisor may move them apart.
        """
        if self.device.type == "cuda" or torch.get_num_threads() == 1:
            return None
        if not self.small:
            self.small = [torch.zeros(2 * ONE_THREADS), torch.empty(2 * ONE_THREADS)]
        shared, alone = self.small, [part[:ONE_THREADS] for part in self.small]
        took = [0.0, 0.0]
        for n, (given, out) in enumerate((shared, alone)):
            times = []
            for _ in range(HAND_OVERS):
                started = time.perf_counter_ns()
                torch.add(given, 1.0, out=out)
                times.append(time.perf_counter_ns() - started)
            took[n] = sorted(times)[HAND_OVERS // 2] / 1e3
        return took[0] - took[1]

    def _call(self, inputs: Inputs) -> float:
        if self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            call = self.replays.get(len(inputs[0]), self.network)
            begin.record()
            call(*inputs)
            end.record()
            torch.cuda.synchronize()
            return float(begin.elapsed_time(end))
        started = time.perf_counter_ns()
        self.network(*inputs)
        return (time.perf_counter_ns() - started) / 1e6


def _stable(times: list[float]) -> bool:
    if len(times) < 2 * STABLE_CALLS:
        return False
    last, before = (sorted(part)[STABLE_CALLS // 2] for part in (times[-STABLE_CALLS:], times[-2 * STABLE_CALLS :][:5]))
    return abs(last / before - 1) < STABLE_WITHIN


def settle() -> None:
    """Wait until this process's threads no longer spin: pools wait actively for a while after a call."""
    deadline = time.perf_counter() + SETTLE_CAP_S
    while time.perf_counter() < deadline:
        before = time.process_time_ns()
        time.sleep(SETTLE_STEP_S)
        if time.process_time_ns() - before < SETTLED_NS:
            return


def answer(contender: Contender | None, command: Command) -> tuple[Contender, Reply]:
    """Carry out one command; the contender and the answer."""
    if isinstance(command, Load):
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, command.cpus)
        contender = Contender(command)
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        return contender, Loaded(contender.load_ms, torch.get_num_threads(), cpus, os.getpid())
    assert contender is not None
    if isinstance(command, WarmUp):
        return contender, contender.warm_up(command.batch_size, command.calls, command.cap_s)
    before = own_times()
    samples = contender.round(command.batch_size, command.repetitions, command.round_ms)
    timed = own_times().since(before)
    handover_us = contender.handover_us()
    settle()
    cpu_s = own_times().since(before).cpu_s
    return contender, Timed(samples, timed.wall_s, timed.waited_s, cpu_s, handover_us)


def _peak_bytes() -> int:
    """Peak resident memory of this process, torch included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def serve(connection: Connection) -> None:
    """Answer commands until there are no more."""
    contender: Contender | None = None
    with torch.inference_mode(), suppress(EOFError):
        while True:
            command = decode(connection.recv_bytes())
            reply: Reply
            try:
                contender, reply = answer(contender, command)
            except RaqError as error:
                reply = Failed(error.message, error.hint)
            except Exception as error:
                text = f"{type(error).__name__}: {first_line(error)}"
                reply = Failed(text, "--debug shows where in its own process", traceback.format_exc())
            connection.send_bytes(encode(reply))


def fork_contenders(control: socket.socket) -> None:
    """Fork a child for each socket that arrives, until there are no more."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return
        sys.stdout.flush()
        if os.fork() == 0:
            code = 1
            try:
                control.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                with Connection(descriptors[0]) as own:
                    serve(own)
                code = 0
            except (BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
                code = 0  # the parent is gone
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(descriptors[0])


if __name__ == "__main__":
    # what loading a package imports, once for all launches
    import torch._inductor.codecache
    import torch._inductor.cpu_vec_isa
    import torch._inductor.package
    import torch.utils.cpp_extension

    for function in sys.argv[2:]:
        with suppress(RaqError):  # the contender that needs it says so
            found = resolve(function.removesuffix("()"))
            if function.endswith("()"):
                found()
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    with suppress(Exception):
        torch._inductor.cpu_vec_isa.pick_vec_isa()  # compiles probes; where that fails, loading says so
    # children leave nothing behind; not before now, as subprocess would take every compiler for a successful one
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as given:
        given.sendall(b"!")
        fork_contenders(given)
