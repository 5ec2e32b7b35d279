"""An artifact in a fresh process with torch alone: what a user who deploys it will get. A .pte: with ExecuTorch alone.

The child does not import raq, nor for a package torchao. Batches go to its standard input as raw float32, logits come
back.
"""

import json
import os
import secrets
import select
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from raq.artifact.executed import TRACED_BATCHES, TRACED_CALLS, Traced, read_trace
from raq.artifact.executorch import is_pte
from raq.environment import inductor_cache
from raq.errors import StageError

MAX_TRACE_BYTES = 100_000_000
START_TIMEOUT_S, CALL_TIMEOUT_S = 120.0, 600.0
MAX_CLASSES, MAX_ANSWER_BYTES = 10_000_000, 4_000_000_000
ALONE = {"inductor": "torch", "executorch": "ExecuTorch"}
CHILD = """
import json, os, struct, sys, time
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
import numpy, torch
path, device, threads, runtime, mark = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
torch.set_num_threads(threads)
if runtime == "executorch":
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime
    portable_lib._unsafe_reset_threadpool(threads)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
on_linux = os.path.exists("/proc/self/statm")
before = resident() if on_linux else None
started = time.perf_counter()
if runtime == "executorch":
    method = Runtime.get().load_program(path).load_method("forward")
    network = lambda images: method.execute([images])[0]
else:
    network = torch._inductor.aoti_load_package(path)
told = {"load_s": time.perf_counter() - started, "torch": torch.__version__}
told["resident_bytes"] = resident() - before if on_linux else None
ours = {"raq", "torchvision"} | ({"torchao"} if runtime == "inductor" else set())  # ExecuTorch imports it itself
told["foreign"] = sorted(ours & set(sys.modules))
answers.write(json.dumps(told).encode() + b"\\n")
answers.flush()
with torch.inference_mode():
    while True:
        header = sys.stdin.buffer.read(32)
        if len(header) < 32:
            break
        shape = list(struct.unpack("4q", header))
        traced = shape[0] < 0 and torch._C._verbose.mkldnn_set_verbose(1)
        shape[0] = abs(shape[0])
        content = bytearray(sys.stdin.buffer.read(4 * shape[0] * shape[1] * shape[2] * shape[3]))
        images = torch.frombuffer(content, dtype=torch.float32)
        if traced:
            os.write(2, (mark + str(shape[0]) + "\\n").encode())
        logits = network(images.view(shape).to(device)).float().cpu().contiguous().numpy()
        if traced:
            torch._C._verbose.mkldnn_set_verbose(0)
        answers.write(struct.pack("2q", *logits.shape) + logits.tobytes())
        answers.flush()
"""


class FreshProcess:
    """A context manager and a network: takes normalised float32 [n, 3, H, W], gives float32 logits [n, classes].

    `told` (after entering): load_s, resident_bytes (None where the system does not tell), torch, foreign (modules
    of ours that were imported all the same: none). Raises StageError if the artifact does not load or run there, or
    does not answer in time.
    """

    def __init__(self, path: Path, device: str = "cpu", threads: int = 1) -> None:
        self.path = path
        self.runtime = "executorch" if is_pte(path) else "inductor"
        self.command = [sys.executable, "-I", "-c", CHILD, str(path.resolve()), device, str(threads), self.runtime]
        self.mark = f"raq-call-{secrets.token_hex(8)} "
        self.command.append(self.mark)
        self.told: dict[str, Any] = {}

    def __enter__(self) -> "FreshProcess":
        self.stack = ExitStack()
        with ExitStack() as stack:
            self.errors: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            # torch unpacks the package there, and a process that is killed does not tidy up
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="raq-fresh-", ignore_cleanup_errors=True))
            self.child = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, cwd=scratch,
                env={**os.environ, "TMPDIR": scratch, "TORCHINDUCTOR_CACHE_DIR": str(inductor_cache())},
            )  # fmt: skip
            stack.callback(self._end)
            assert self.child.stdin is not None
            assert self.child.stdout is not None
            self.requests, self.answers = self.child.stdin.fileno(), self.child.stdout.fileno()
            os.set_blocking(self.requests, False)
            self.buffer = bytearray()
            line = self._exchange(b"", lambda got: got.find(b"\n") + 1, START_TIMEOUT_S)
            try:
                self.told = json.loads(line)
            except ValueError:
                raise self._failure("it gave no sensible answer") from None
            self.stack = stack.pop_all()
        return self

    def __call__(self, images: Tensor, *, traced: bool = False) -> Tensor:
        """The logits for a batch; traced: oneDNN reports what it executes meanwhile, where it can."""
        assert images.ndim == 4
        values = images.detach().cpu().contiguous().numpy().astype(np.float32, copy=False)
        first, *others = values.shape
        request = struct.pack("4q", -first if traced else first, *others) + values.tobytes()
        header = self._exchange(request, lambda got: 16 if len(got) >= 16 else 0, CALL_TIMEOUT_S)
        rows, classes = struct.unpack("2q", header)
        if rows != len(values) or not 0 < classes <= MAX_CLASSES:
            raise self._failure(f"it gave [{rows}, {classes}] for {len(values)} images")
        size = 4 * rows * classes
        content = self._exchange(b"", lambda got: size if len(got) >= size else 0, CALL_TIMEOUT_S)
        return torch.from_numpy(np.frombuffer(content, dtype=np.float32).reshape(rows, classes).copy())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def trace(self, image_shape: Sequence[int], weight_sizes: Collection[int]) -> list[Traced] | None:
        """What oneDNN reports of some calls with each batch size of TRACED_BATCHES (`executed.read_trace`).

        image_shape: [3, H, W]. Raises StageError if it does not run.
        """
        generator = torch.Generator().manual_seed(0)
        for batch_size in TRACED_BATCHES:
            images = torch.randn(batch_size, *image_shape, generator=generator)
            for _ in range(TRACED_CALLS):
                self(images, traced=True)
        self.errors.seek(0)
        return read_trace(self.errors.read(MAX_TRACE_BYTES).decode(errors="replace"), self.mark, weight_sizes)

    def _end(self) -> None:
        self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _exchange(self, request: bytes, complete: Callable[[bytearray], int], timeout_s: float) -> bytes:
        """Send all of `request` and receive until `complete` tells how many bytes are the answer, within one limit."""
        deadline = time.monotonic() + timeout_s
        left = memoryview(request)
        while not (count := 0 if left else complete(self.buffer)):
            wait = deadline - time.monotonic()
            readable, writable, _ = select.select([self.answers], [self.requests] if left else [], [], max(0.0, wait))
            if not readable and not writable:
                raise self._failure(f"no answer within {timeout_s:.0f} s")
            try:
                if writable:
                    left = left[os.write(self.requests, left[: 1 << 20]) :]
                received = os.read(self.answers, 1 << 20) if readable else None
            except OSError:
                received = b""
            if received == b"" or len(self.buffer) > MAX_ANSWER_BYTES:
                raise self._failure("its process ended" if received == b"" else "it does not stop answering")
            self.buffer += received or b""
        answer = bytes(self.buffer[:count])
        del self.buffer[:count]
        return answer

    def _failure(self, what: str) -> StageError:
        self.child.kill()
        self.child.wait()
        self.errors.seek(0)
        lines = self.errors.read()[-100_000:].decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return StageError(
            f"{self.path}: the artifact does not run in a fresh process with {ALONE[self.runtime]} alone: {what}{last}",
            "lower it again on this machine",
        )
