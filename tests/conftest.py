"""Shared by all tests: a cache of their own, the tiny experiment, and one real run of it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run what takes more than half a minute each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here: untested"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """No test reads or writes the user's cache or data."""
    folder = tmp_path_factory.mktemp("cache")
    before = {name: os.environ.pop(name, None) for name in ("RAQ_CACHE", "RAQ_DATA")}
    os.environ["RAQ_CACHE"] = str(folder)
    yield folder
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


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
    return np.zeros((4, 3, 8, 8), dtype=np.float32), np.zeros(4, dtype=int), np.zeros((4, 3, 8, 8)), np.zeros(4, dtype=int)
'''
TINY_YAML = """
name: tiny
data: {name: "tiny_user:data"}
model: {name: "tiny_user:model"}
train: {epochs: 4, lr: 0.05, augment: false, progressive: [], batch_size: 32}
ptq: {calibration: {size: 64}}
qat: {epochs: 2, augment: false, batch_size: 32}
bench: {batch_sizes: [1, 8], rounds: 6, round_ms: 5, warmup: 1}
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
        return [sys.executable, "-c", "from raq.cli import main; main()", *arguments]

    def raq(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `raq` in a process of its own, in this folder."""
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, capture_output=True, text=True, timeout=timeout, check=False
        )


def make_workplace(folder: Path, cache: Path) -> Workplace:
    (folder / "tiny_user.py").write_text(TINY_MODULE)
    (folder / "tiny.yaml").write_text(TINY_YAML)
    return Workplace(folder, cache)


@pytest.fixture
def workplace(tmp_path: Path, own_cache: Path) -> Workplace:
    """A fresh folder with the tiny experiment, nothing run yet."""
    return make_workplace(tmp_path, own_cache)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Workplace:
    """The tiny experiment, run once for real: Ray, int8 kernels, compiled artifacts."""
    place = make_workplace(tmp_path_factory.mktemp("finished"), own_cache)
    done = place.raq("run", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (place.folder / "output.txt").write_text(done.stdout)
    return place


@pytest.fixture(scope="session")
def digits():
    """The digits, limited: [N, 3, 32, 32]."""
    from raq.experiment import Data
    from raq.model.data import load_dataset

    return load_dataset(Data(name="digits", train_limit=400, test_limit=77))


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
