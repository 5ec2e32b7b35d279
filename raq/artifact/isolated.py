"""An artifact in a process without raq, with its runtime's library alone: what a user who deploys it will get.

The other end is alone.py. Requests and answers are bytes, never pickles: the artifact may be a stranger's.
"""

import importlib.util
import json
import math
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from raq.artifact.executed import TRACED_BATCHES, TRACED_CALLS, Traced, read_trace
from raq.artifact.runtimes import Runtime, runtime_of_file
from raq.environment import inductor_cache
from raq.errors import StageError
from raq.experiment.inputs import MAX_DIMENSIONS, MAX_SIZE, Inputs
from raq.model.inputs import random_inputs
from raq.store.views import View

MAX_TRACE_BYTES = 100_000_000
START_TIMEOUT_S, CALL_TIMEOUT_S = 120.0, 600.0
MAX_ANSWER_BYTES = 2_000_000_000
CHILD = "raq.artifact.alone"


class ReportedKernel(View):
    """What a runtime says that it executes. nodes: of the file, that it computes; int8: whether in integers, None if
    that cannot be told."""

    nodes: list[str]
    kernel: str
    int8: bool | None


class LaunchedKernel(View):
    """A kernel that a GPU ran in a call: how often, and for how long in all."""

    name: str
    count: int
    ms: float


_REPORT, _LAUNCHES = TypeAdapter(list[ReportedKernel]), TypeAdapter(list[LaunchedKernel])


class Loaded(View):
    """How loading went there.

    resident_bytes: None where the system does not report it; foreign: modules that were imported and must not be.
    """

    load_s: float
    resident_bytes: int | None
    torch: str
    foreign: list[str]


class IsolatedProcess:
    """A context manager and a network: takes its inputs, tensors [n, ...], gives its output as float32 [n, ...].

    `loaded`: how that went, after entering. Raises StageError if the artifact does not load or run there, or does not
    answer in time.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1, runtime: Runtime | None = None) -> None:
        """runtime: which one; by default the one that the file's content says."""
        self.path, self.device, self.threads = path, device, threads
        self.runtime = runtime or runtime_of_file(path)
        self.mark = f"raq-call-{secrets.token_hex(8)} "
        self.loaded: Loaded

    def __enter__(self) -> "IsolatedProcess":
        with ExitStack() as stack:
            self.errors: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            # torch unpacks the package there, and a process that is killed does not tidy up
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="raq-alone-", ignore_cleanup_errors=True))
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-I", _file_of(CHILD), _file_of(self.runtime.alone)]
                command += [str(self.path.resolve()), self.device, str(self.threads), self.mark, str(theirs.fileno())]
                self.connection = stack.enter_context(Connection(ours.detach()))
                self.child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors, cwd=scratch,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "TMPDIR": scratch, "TORCHINDUCTOR_CACHE_DIR": str(inductor_cache())},
                )  # fmt: skip
            stack.callback(self._end)
            try:
                self.loaded = Loaded.model_validate_json(self._exchange(None, START_TIMEOUT_S))
            except ValueError:
                raise self._failure("it gave no sensible answer") from None
            self.stack = stack.pop_all()
        return self

    def __call__(self, *inputs: Tensor, traced: bool = False) -> Tensor:
        """The output for a batch; traced: oneDNN reports what it executes meanwhile, where it can."""
        answer = self._exchange(_request("trace" if traced else "run", inputs), CALL_TIMEOUT_S)
        rank = struct.unpack("q", answer[:8])[0] if len(answer) >= 8 else 0
        start = 8 * (1 + rank) if 0 < rank <= MAX_DIMENSIONS else len(answer) + 1
        shape = struct.unpack(f"{rank}q", answer[8:start]) if start <= len(answer) else ()
        sensible = shape and shape[0] == len(inputs[0]) and all(0 < size <= MAX_SIZE for size in shape)
        if not sensible or len(answer) != start + 4 * math.prod(shape):
            raise self._failure(f"it gave {list(shape)} in {len(answer)} bytes for {len(inputs[0])} samples")
        return torch.from_numpy(np.frombuffer(answer[start:], dtype=np.float32).reshape(shape).copy())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def trace(self, inputs: Inputs, weight_sizes: Collection[int]) -> list[Traced] | None:
        """What oneDNN reports of some calls with each batch size of TRACED_BATCHES (`executed.read_trace`).

        inputs: what it is called with. Raises StageError if it does not run.
        """
        for batch_size in TRACED_BATCHES:
            given = random_inputs(inputs, batch_size)
            for _ in range(TRACED_CALLS):
                self(*given, traced=True)
        return read_trace(self.log(), self.mark, weight_sizes)

    def account(self, inputs: Inputs) -> list[ReportedKernel]:
        """What the runtime itself says that it executes for one sample, where it can say so.

        inputs: what it is called with. Raises StageError if it does not run.
        """
        return self._told("account", inputs, _REPORT)

    def launches(self, inputs: Inputs) -> list[LaunchedKernel]:
        """What torch's profiler saw a GPU run for one sample; empty where it sees none (a container may forbid it).

        inputs: what it is called with. Raises StageError if it does not run.
        """
        return self._told("launches", inputs, _LAUNCHES)

    def _told(self, what: str, inputs: Inputs, form: TypeAdapter[list[Any]]) -> list[Any]:
        answer = self._exchange(_request(what, random_inputs(inputs, 1)), CALL_TIMEOUT_S)
        try:
            return form.validate_json(answer)
        except ValueError:
            raise self._failure("it gave no sensible account of what it executes") from None

    def log(self) -> str:
        """What the process has written to standard error, oneDNN's reports among it."""
        self.errors.seek(0)
        return self.errors.read(MAX_TRACE_BYTES).decode(errors="replace")

    def _end(self) -> None:
        self.child.kill()
        self.child.wait()

    def _exchange(self, request: bytes | None, timeout_s: float) -> bytes:
        """Send a request, if there is one, and receive the answer, both within one limit.

        A process that stops in the middle of a message would be waited for: at the limit it is killed, which ends both.
        """
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.child.kill()

        timer = threading.Timer(timeout_s, give_up)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                self.connection.send_bytes(request)
            return self.connection.recv_bytes(MAX_ANSWER_BYTES)
        except (OSError, EOFError) as error:
            what = (
                "its process ended"
                if isinstance(error, EOFError | ConnectionError)
                else f"its answer cannot be read: {error}"
            )
            raise self._failure(f"no answer within {timeout_s:.0f} s" if late.is_set() else what) from None
        finally:
            timer.cancel()

    def _failure(self, what: str) -> StageError:
        self._end()
        self.errors.seek(0)
        lines = self.errors.read()[-100_000:].decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        alone = " and ".join(self.runtime.libraries) or "torch"
        return StageError(
            f"{self.path}: the artifact does not run in a process with {alone} alone: {what}{last}",
            "lower it again on this machine",
        )


def _request(what: str, inputs: Iterable[Tensor]) -> bytes:
    """A header of JSON, its length before it, and the bytes of the inputs."""
    given = [value.detach().cpu().contiguous() for value in inputs]
    described = [[str(value.dtype).removeprefix("torch."), list(value.shape)] for value in given]
    header = json.dumps({"do": what, "inputs": described}).encode()
    content = [value.flatten().view(torch.uint8).numpy().tobytes() for value in given]
    return b"".join([struct.pack("q", len(header)), header, *content])


def _file_of(module: str) -> str:
    """The file of a module that is run, not imported."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None, module
    return found.origin
