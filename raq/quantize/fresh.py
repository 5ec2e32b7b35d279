"""An artifact in a fresh process with torch alone: what a user who deploys it will get.

The child imports neither raq nor torchao. Batches go to its standard input as raw float32, logits come back.
"""

import json
import os
import select
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from raq.errors import StageError

START_TIMEOUT_S, CALL_TIMEOUT_S = 120.0, 600.0
CHILD = """
import json, os, struct, sys, time
answers = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
import numpy, torch
path, device, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
on_linux = os.path.exists("/proc/self/statm")
before = resident() if on_linux else None
started = time.perf_counter()
network = torch._inductor.aoti_load_package(path)
told = {"load_s": time.perf_counter() - started, "torch": torch.__version__}
told["resident_bytes"] = resident() - before if on_linux else None
told["foreign"] = sorted({"raq", "torchao", "torchvision"} & set(sys.modules))
answers.write(json.dumps(told).encode() + b"\\n")
answers.flush()
with torch.inference_mode():
    while True:
        header = sys.stdin.buffer.read(32)
        if len(header) < 32:
            break
        shape = struct.unpack("4q", header)
        content = bytearray(sys.stdin.buffer.read(4 * shape[0] * shape[1] * shape[2] * shape[3]))
        images = torch.frombuffer(content, dtype=torch.float32)
        logits = network(images.view(shape).to(device)).float().cpu().contiguous().numpy()
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
        self.command = [sys.executable, "-I", "-c", CHILD, str(path.resolve()), device, str(threads)]
        self.told: dict[str, Any] = {}

    def __enter__(self) -> "FreshProcess":
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, cwd=tempfile.gettempdir()
        )
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.requests, self.answers = self.child.stdin, self.child.stdout.fileno()
        self.buffer = b""
        try:
            while b"\n" not in self.buffer:
                self._receive(START_TIMEOUT_S)
            line, _, self.buffer = self.buffer.partition(b"\n")
            self.told = json.loads(line)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """The logits for a batch."""
        assert images.ndim == 4
        values = images.detach().cpu().contiguous().numpy().astype(np.float32, copy=False)
        try:
            self.requests.write(struct.pack("4q", *values.shape) + values.tobytes())
            self.requests.flush()
        except BrokenPipeError:
            raise self._failure("its process ended") from None
        rows, classes = struct.unpack("2q", self._take(16, CALL_TIMEOUT_S))
        logits = np.frombuffer(self._take(4 * rows * classes, CALL_TIMEOUT_S), dtype=np.float32)
        return torch.from_numpy(logits.reshape(rows, classes).copy())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.kill()
        self.child.wait()
        self.child.stdout.close()  # type: ignore[union-attr]
        with suppress(BrokenPipeError):
            self.requests.close()
        self.errors.close()

    def _take(self, count: int, timeout_s: float) -> bytes:
        while len(self.buffer) < count:
            self._receive(timeout_s)
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def _receive(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        ready, _, _ = select.select([self.answers], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise self._failure(f"no answer within {timeout_s:.0f} s")
        received = os.read(self.answers, 1 << 20)
        if not received:
            raise self._failure("its process ended")
        self.buffer += received

    def _failure(self, what: str) -> StageError:
        self.child.kill()
        self.child.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        return StageError(
            f"{self.path}: the artifact does not run in a fresh process with torch alone: {what}{last}",
            "lower it again on this machine",
        )
