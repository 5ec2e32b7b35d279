"""One contender in a process of its own: `python -m raq.bench.runtimes`.

The parent writes one JSON command a line and reads one JSON answer a line; between commands the process sleeps in a
read, so that it takes nothing from the contender whose turn it is. It ends when its input ends.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from raq.errors import RaqError

Network = Callable[[Tensor], Tensor]
ROTATED_INPUTS = 4
Command = dict[str, Any]


def load_eager(contender: Command) -> Network:
    """The FP32 network as PyTorch runs it without a compiler."""
    from raq.model.zoo import build_model, load_weights, put_weights

    model = build_model(contender["model"], contender["classes"], contender["working_directory"])
    put_weights(model, load_weights(Path(contender["path"])), contender["model"], contender["path"])
    return model.eval().to(contender["device"])


def load_inductor(contender: Command) -> Network:
    """An AOTInductor package."""
    from raq.quantize.artifact import load

    return load(Path(contender["path"]))


LOADERS = {"eager": load_eager, "inductor": load_inductor}


class Contender:
    """What this process measures: the loaded network and its inputs."""

    def __init__(self, settings: Command) -> None:
        torch.set_num_threads(settings["threads"])
        self.device = torch.device(settings["device"])
        self.shape = settings["image_shape"]
        started = time.perf_counter_ns()
        self.network = LOADERS[settings["runtime"]](settings)
        self.load_ms = (time.perf_counter_ns() - started) / 1e6
        self.inputs: dict[int, list[Tensor]] = {}

    def warm_up(self, batch_size: int, calls: int) -> float:
        """Make the inputs for a batch size and warm up; the milliseconds of the very first call."""
        generator = torch.Generator().manual_seed(batch_size)
        # several inputs, taken in turn, so that the caches do not hold the answer's input
        self.inputs[batch_size] = [
            torch.randn(batch_size, *self.shape, generator=generator).to(self.device) for _ in range(ROTATED_INPUTS)
        ]
        first = self._call(self.inputs[batch_size][0])
        for n in range(calls):
            self._call(self.inputs[batch_size][n % ROTATED_INPUTS])
        return first

    def round(self, batch_size: int, repetitions: int, round_ms: float) -> list[float]:
        """Milliseconds of each call: at least `repetitions` calls and `round_ms` milliseconds of them."""
        samples: list[float] = []
        while len(samples) < repetitions or sum(samples) < round_ms:
            samples.append(self._call(self.inputs[batch_size][len(samples) % ROTATED_INPUTS]))
        return samples

    def _call(self, images: Tensor) -> float:
        if self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            self.network(images)
            end.record()
            torch.cuda.synchronize()
            return float(begin.elapsed_time(end))
        started = time.perf_counter_ns()
        self.network(images)
        return (time.perf_counter_ns() - started) / 1e6


def answer(contender: Contender | None, command: Command) -> tuple[Contender, Command]:
    """Carry out one command; the contender and the answer."""
    if command["do"] == "load":
        contender = Contender(command["contender"])
        cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        return contender, {"load_ms": contender.load_ms, "threads": torch.get_num_threads(), "cpus": cpus}
    assert contender is not None
    if command["do"] == "warm_up":
        return contender, {"first_ms": contender.warm_up(command["batch_size"], command["calls"])}
    samples = contender.round(command["batch_size"], command["repetitions"], command["round_ms"])
    return contender, {"samples_ms": samples}


def serve(commands: IO[str], answers: IO[str]) -> None:
    """Answer commands until there are no more."""
    contender: Contender | None = None
    with torch.inference_mode():
        for line in iter(commands.readline, ""):
            try:
                contender, reply = answer(contender, json.loads(line))
            except RaqError as error:
                reply = {"error": error.message, "hint": error.hint}
            except Exception as error:
                traceback.print_exc()
                reply = {"error": f"{type(error).__name__}: {error}", "hint": "--debug and the log show more"}
            answers.write(json.dumps(reply) + "\n")
            answers.flush()


if __name__ == "__main__":
    # answers go to the real standard output; whatever libraries print goes to standard error
    with os.fdopen(os.dup(1), "w") as real_output:
        os.dup2(2, 1)
        serve(sys.stdin, real_output)
