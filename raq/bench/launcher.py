"""The parent's end of the contenders' processes: started, asked one at a time, ended. The other end is contender.py."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raq.artifact.runtimes import RUNTIMES
from raq.environment import inductor_cache
from raq.errors import StageError

ANSWER_TIMEOUT_S, END_TIMEOUT_S = 600.0, 10.0


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


class ContenderError(Exception):
    """What a contender's process raised: its own traceback."""


class ContenderProcess:
    """One contender's process, as its parent sees it."""

    def __init__(self, settings: ContenderSettings, own: socket.socket, errors: Path) -> None:
        self.settings = settings
        self.name = settings.name
        self.socket = own
        self.stream = own.makefile("rw")
        self.errors = errors
        self.pid: int | None = None
        self.told: dict[str, Any] = {}

    def load(self, cpus: Sequence[int]) -> None:
        """Load the contender, on these CPUs."""
        runtime = RUNTIMES.get(self.settings.runtime)  # eager mode is none
        how = {"load": runtime and runtime.load, "prepare": runtime and runtime.prepare}
        self.told = self.ask(do="load", contender={**asdict(self.settings), **how}, cpus=sorted(cpus))
        self.pid = self.told["pid"]
        if self.told["threads"] != self.settings.threads:
            raise StageError(
                f"{self.name} runs {self.told['threads']} threads, not {self.settings.threads}", "lower the threads"
            )
        if self.told["cpus"] not in (None, sorted(cpus)):
            raise StageError(f"{self.name} runs on the CPUs {self.told['cpus']}, not {sorted(cpus)}", "give it those")

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and sleep until its answer is there."""
        try:
            self.stream.write(json.dumps(command) + "\n")
            self.stream.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(self.socket, selectors.EVENT_READ)
                if not selector.select(ANSWER_TIMEOUT_S):
                    raise StageError(
                        f"{self.name}: no answer in {ANSWER_TIMEOUT_S:.0f} s", "lower bench.round_ms or repetitions"
                    )
            line = self.stream.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = ""
        if not line:
            raise StageError(
                f"{self.name}: its process ended{_last_line(self.errors)}", "run it again; was there enough memory?"
            )
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            cause = ContenderError(reply["trace"]) if reply.get("trace") else None
            raise StageError(f"{self.name}: {reply['error']}", reply["hint"]) from cause
        return reply

    def close(self) -> None:
        """End the process, which goes when its socket does, and wait until it has put away what it held."""
        with suppress(OSError, TimeoutError):
            self.stream.flush()
            self.socket.shutdown(socket.SHUT_WR)
            self.socket.settimeout(END_TIMEOUT_S)
            while self.socket.recv(4096):
                pass
        with suppress(OSError):
            self.stream.close()
        self.socket.close()


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
        """A fresh process on these CPUs with the contender loaded; ended on the way out."""
        ours, theirs = socket.socketpair()
        process = ContenderProcess(settings, ours, self.errors)
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
    functions += [f"{runtime.prepare}()" for runtime in used if runtime.prepare is not None]
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
