"""A folder with the tiny experiment: a user's own model and data, small enough to run for real in a minute."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY_MODULE = '''
"""A user's own model and data: two convolutions, 16x16 images whose class is their brightest quarter."""
import numpy as np
import torch
from torch import nn


def model(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, num_classes),
    )


def split(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (count, 3, 16, 16)).astype(np.uint8)
    labels = rng.integers(0, 4, count)
    for image, label in zip(images, labels):
        row, column = divmod(int(label), 2)
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 80
    return images, labels


def data():
    return *split(512, 0), *split(203, 1)


def hangs_once(num_classes):
    import pathlib, time
    hung = pathlib.Path(__file__).with_name("hung")
    if not hung.exists():
        hung.touch()
        time.sleep(600)
    return model(num_classes)


def not_a_model(num_classes):
    return num_classes


class Unexportable(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 16)

    def forward(self, x):
        if x.sum() > 0:
            return self.conv(x).flatten(1)
        return self.conv(-x).flatten(1)


def unexportable(num_classes):
    return Unexportable(num_classes)


def bad_data():
    labels = np.zeros(4, dtype=int)
    return np.zeros((4, 3, 8, 8), dtype=np.float32), labels, np.zeros((4, 3, 8, 8)), labels
'''
TINY_YAML = """
name: tiny
data: {name: "tiny_user:data"}
model: {name: "tiny_user:model"}
train: {epochs: 4, lr: 0.05, augment: false, progressive: [], batch_size: 32}
ptq: {calibration: {size: 64}}
qat: {epochs: 2, augment: false, batch_size: 32}
bench: {batch_sizes: [1, 8], rounds: 6, precision: null, round_ms: 5, warmup: 1}
"""


@dataclass(frozen=True)
class Workplace:
    """A folder with the tiny experiment, its module, and the results of runs."""

    folder: Path
    cache: Path

    @property
    def experiment(self) -> Path:
        return self.folder / "tiny.yaml"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from raq.cli.main import main; main()", *arguments]

    def raq(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run `raq` in a process of its own, in this folder."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False
        )

    def raq_here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `raq` in this process, which has torch imported: for what ends before anything starts."""
        from raq.cli.main import main

        output, errors = io.StringIO(), io.StringIO()
        before, handler = (Path.cwd(), sys.argv), signal.getsignal(signal.SIGTERM)
        os.chdir(self.folder)
        sys.argv = ["raq", *arguments]
        try:
            with redirect_stdout(output), redirect_stderr(errors), pytest.raises(SystemExit) as ended:
                main()
        finally:
            os.chdir(before[0])
            sys.argv = before[1]
            signal.signal(signal.SIGTERM, handler)
        code = ended.value.code if isinstance(ended.value.code, int) else 0
        return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue())


def own_stage_processes() -> list[int]:
    """The stage actors at work on the cluster that this process started: other tests have theirs at the same time."""
    own = os.environ["RAQ_OWN_CLUSTER"].encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            at_work = (process / "cmdline").read_bytes().startswith(b"ray::StageActor.run")
            if at_work and own in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def clear_error(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that ended with `code`: two lines on standard error, no traceback."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) <= 2
    assert lines[0].startswith("raq: ")
    return done.stderr


def make_workplace(folder: Path, cache: Path) -> Workplace:
    (folder / "tiny_user.py").write_text(TINY_MODULE)
    (folder / "tiny.yaml").write_text(TINY_YAML)
    return Workplace(folder, cache)
