"""Shared by all tests: a cache of their own, the tiny experiment, and one real run of it."""

import os
from pathlib import Path

import numpy as np
import pytest
from workplace import Workplace, make_workplace

# before ray is imported, which reads it then: under `uv run pytest` every worker would start through uv
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
LONGEST_FIRST = (
    "test_cli.py", "test_backends_run.py", "test_sweep_on_ray.py", "test_cli_errors.py", "test_stages_on_ray.py",
    "test_backends.py", "test_faults.py", "test_quantization.py",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run what takes more than half a minute each")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    # two workers take whole files in turn: the longest first
    items.sort(key=lambda item: LONGEST_FIRST.index(item.path.name) if item.path.name in LONGEST_FIRST else 99)
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
    from raq.experiment.schema import Data
    from raq.model.dataset import load_dataset

    return load_dataset(Data(name="digits", train_limit=400, test_limit=77))


@pytest.fixture(autouse=True)
def seeded() -> None:
    import torch

    torch.manual_seed(0)
    np.random.seed(0)
