"""The parent's end of the contenders' processes: started, asked one at a time, ended. The other end is contender.py."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from raq.artifact.runtimes import RUNTIMES
from raq.bench.messages import (
    Command,
    ContenderSettings,
    Failed,
    Load,
    Loaded,
    Timed,
    TimeRound,
    Warmed,
    WarmUp,
    decode,
    encode,
)
from raq.environment import inductor_cache
from raq.errors import StageError, first_line

ANSWER_TIMEOUT_S, END_TIMEOUT_S = 600.0, 10.0
MAX_REPLY_BYTES = 2_000_000_000  # some 80 million samples
R = TypeVar("R", Loaded, Warmed, Timed)


class ContenderError(Exception):
    """What a contender's process raised: its own traceback."""


class ContenderProcess:
    """One contender's process, as its parent sees it."""

    def __init__(self, settings: ContenderSettings, connection: Connection, errors: Path) -> None:
        self.settings = settings
        self.name = settings.name
        self.connection = connection
        self.errors = errors
        self.loaded: Loaded

    def load(self, cpus: Sequence[int]) -> None:
        """Load the contender, on these CPUs."""
        runtime = RUNTIMES.get(self.settings.runtime)  # eager mode is none
        load, prepare = (None, None) if runtime is None else (runtime.load, runtime.prepare)
        self.loaded = self._ask(Load(**asdict(self.settings), cpus=sorted(cpus), load=load, prepare=prepare), Loaded)
        if self.loaded.threads != self.settings.threads:
            raise StageError(
                f"{self.name} runs {self.loaded.threads} threads, not {self.settings.threads}", "lower the threads"
            )
        if self.loaded.cpus not in (None, sorted(cpus)):
            raise StageError(f"{self.name} runs on the CPUs {self.loaded.cpus}, not {sorted(cpus)}", "give it those")

    def warm_up(self, batch_size: int, calls: int, cap_s: float) -> Warmed:
        """Call it until its times are stable."""
        return self._ask(WarmUp(batch_size, calls, cap_s), Warmed)

    def time_round(self, batch_size: int, repetitions: int, round_ms: float) -> Timed:
        """Time its calls."""
        return self._ask(TimeRound(batch_size, repetitions, round_ms), Timed)

    def _ask(self, command: Command, expected: type[R]) -> R:
        """Send a command and sleep until its answer is there."""
        try:
            self.connection.send_bytes(encode(command))
            if not self.connection.poll(ANSWER_TIMEOUT_S):
                raise StageError(
                    f"{self.name}: no answer in {ANSWER_TIMEOUT_S:.0f} s", "lower bench.round_ms or repetitions"
                )
            reply = decode(self.connection.recv_bytes(MAX_REPLY_BYTES))
        except ValueError as error:
            raise StageError(
                f"{self.name}: {first_line(error)}", "the artifact disturbs its process; run it again"
            ) from None
        except (OSError, EOFError):
            raise StageError(
                f"{self.name}: its process ended{_last_line(self.errors)}", "run it again; was there enough memory?"
            ) from None
        if isinstance(reply, Failed):
            cause = ContenderError(reply.trace) if reply.trace else None
            raise StageError(f"{self.name}: {reply.error}", reply.hint) from cause
        if not isinstance(reply, expected):
            raise StageError(f"{self.name}: an answer that was not asked for", "the artifact disturbs its process")
        return reply

    def close(self) -> None:
        """End the process, which goes when it is asked no more, and wait until it has put away what it held."""
        with suppress(OSError, EOFError):
            with socket.socket(fileno=os.dup(self.connection.fileno())) as own:
                own.shutdown(socket.SHUT_WR)
            while self.connection.poll(END_TIMEOUT_S):
                self.connection.recv_bytes(MAX_REPLY_BYTES)
        self.connection.close()


def _last_line(errors: Path) -> str:
    """What the processes wrote last to standard error."""
    try:
        lines = [line for line in errors.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f": {lines[-1].strip()}" if lines else ""


class ForkServer:
    """The process that forks a contender's process for every launch; their standard error is in `errors`."""

    def __init__(self, control: socket.socket, errors: Path) -> None:
        self.control = control
        self.errors = errors

    @contextmanager
    def launch(self, settings: ContenderSettings, cpus: Sequence[int]) -> Iterator[ContenderProcess]:
        """A new process on these CPUs with the contender loaded; ended on the way out."""
        ours, theirs = socket.socketpair()
        process = ContenderProcess(settings, Connection(ours.detach()), self.errors)
        try:
            with theirs:
                try:
                    socket.send_fds(self.control, [b"+"], [theirs.fileno()])
                except OSError as error:
                    raise StageError(
                        f"{settings.name}: no process can be started{_last_line(self.errors)}",
                        "run it again; was there enough memory?",
                    ) from error
            process.load(cpus)
            yield process
        finally:
            process.close()


@contextmanager
def fork_server(runtimes: Collection[str] = ()) -> Iterator[ForkServer]:
    """Start the process that contenders are forked from; it and all of them are ended on the way out.

    runtimes: of the contenders to come, whose libraries are then imported once for all launches.
    """
    used = [RUNTIMES[name] for name in sorted(set(runtimes) & set(RUNTIMES))]
    functions = [runtime.load for runtime in used]
    functions += [
        f"{runtime.prepare}()" for runtime in used if runtime.prepare is not None and "cpu" in runtime.devices
    ]
    ours, theirs = socket.socketpair()
    # torch unpacks packages there, and a process that is killed does not tidy up
    with ours, tempfile.TemporaryDirectory(prefix="raq-bench-", ignore_cleanup_errors=True) as scratch:
        errors = Path(scratch) / "stderr.txt"
        # torch's C++ extensions ask for GPUs when imported, which must not start CUDA before a fork
        environment = {
            **os.environ, "TMPDIR": scratch, "TORCHINDUCTOR_CACHE_DIR": str(inductor_cache()),
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        }  # fmt: skip
        with theirs, errors.open("w") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "raq.bench.contender", str(theirs.fileno()), *functions],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stderr=file, start_new_session=True,
                env=environment,
            )  # fmt: skip
        try:
            ours.settimeout(ANSWER_TIMEOUT_S)
            try:
                ready = ours.recv(1)  # its imports are no contender's time
            except TimeoutError:
                ready = b""
            if not ready:
                raise StageError(
                    f"the process that contenders are forked from did not start{_last_line(errors)}",
                    "run it again; was there enough memory?",
                )
            yield ForkServer(ours, errors)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # its own session: it and its children, nobody else
            child.wait()
