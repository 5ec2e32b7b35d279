"""The verbs where something is wrong: refused before anything starts, failed on Ray, interrupted."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch
from workplace import Workplace, clear_error

from raq.model.zoo import build_model

# --- what is refused, before anything starts ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resources.train.cpus=1000"], "resources.train.cpus is 1000, and the largest node has"),
        (["resources.train.gpus=1"], "needs a node with 1 GPU, and the cluster has none"),
        (["bench.devices=[cuda]"], "needs a node with 1 GPU, and the cluster has none"),
        (["train.workers=64", "resources.train.cpus=1"], "asks for 64 workers of 1 CPUs"),
        (["bench.threads=1000"], "bench.threads is 1000"),
        (["ptq.calibration.size=1000"], "ptq.calibration.size is 1000, and there are 486 samples to calibrate with"),
        (["data.name='tiny_user:bad_data'"], "images are float32"),
        (["model.weights=none.pt"], "none.pt cannot be read: No such file"),
    ],
)
def test_what_cannot_be_is_refused_at_once(workplace: Workplace, overrides: list[str], message: str) -> None:
    if torch.cuda.is_available() and "GPU" in message:
        pytest.skip("this machine has a GPU")
    arguments = [part for override in overrides for part in ("--set", override)]
    error = clear_error(workplace.raq_here("run", "tiny.yaml", *arguments), 2)
    assert message in error
    assert not list((workplace.folder / "results").glob("runs/*"))


def test_results_that_cannot_be_written(workplace: Workplace) -> None:
    (workplace.folder / "results").write_text("a file")
    assert "results cannot be written there" in clear_error(workplace.raq_here("run", "tiny.yaml"), 2)


def test_no_cluster_at_the_address(workplace: Workplace) -> None:
    error = clear_error(workplace.raq("run", "tiny.yaml", "--address", "127.0.0.1:6", timeout=120), 2)
    assert "--address 127.0.0.1:6: no Ray cluster answers" in error


# --- what fails on Ray ---


def test_weights_that_do_not_fit_are_told_before_anything_runs(workplace: Workplace) -> None:
    torch.save(build_model("resnet20-cifar", 4).state_dict(), workplace.folder / "other.pt")
    for verb in ("plan", "run"):
        error = clear_error(workplace.raq_here(verb, "tiny.yaml", "--set", "model.weights=other.pt"), 2)
        assert "does not fit tiny_user:model" in error
    assert not list((workplace.folder / "results").glob("runs/*"))


@pytest.mark.cluster
def test_errors_of_stages_come_back_as_one_line(workplace: Workplace) -> None:
    error = clear_error(workplace.raq("run", "tiny.yaml", "--set", "train.lr=100"), 1)
    assert "train: " in error
    assert "log:" in error
    run = workplace.raq_here("show")
    assert "the run is not complete" in run.stdout


def processes_of(folder: Path) -> list[str]:
    """Processes whose environment or command names this folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in text:
                found.append(f"{process.name}: {(process / 'cmdline').read_bytes()[:100]!r}")
    return found


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "epoch 3:"),
        pytest.param(signal.SIGTERM, "train: starting", marks=pytest.mark.slow),
    ],
)
def test_interrupted_and_continued(workplace: Workplace, number: int, moment: str) -> None:
    """A signal at that moment: 130, no process left; the next run goes on after the last finished epoch."""
    temporary = Path(tempfile.mkdtemp(prefix="raq-", dir="/tmp"))
    settings = ["--set", "train.epochs=12", "--set", "qat=null", "--set", "ptq=null", "--set", "bench.rounds=1"]
    process = subprocess.Popen(
        workplace.command("run", "tiny.yaml", *settings), cwd=workplace.folder, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if moment in line:
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert error.startswith("raq: interrupted")
    deadline = time.monotonic() + 20
    while processes_of(temporary) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(temporary) == []
    assert list(temporary.glob("raq-ray-*")) == []
    assert not list((workplace.folder / "results" / "stages").glob("*")), "nothing half-written"
    assert "the run is not complete" in workplace.raq_here("show").stdout
    shutil.rmtree(temporary)
    if number == signal.SIGTERM:
        return
    again = subprocess.Popen(
        workplace.command("run", "tiny.yaml", *settings), cwd=workplace.folder, stdout=subprocess.PIPE, text=True
    )
    assert again.stdout is not None
    lines = []
    for line in again.stdout:
        lines.append(line)
        if "train: done" in line:
            break
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    assert "train: done: 12 epochs" in lines[-1]
    assert not any("epoch 1:" in line for line in lines)


@pytest.mark.slow
@pytest.mark.cluster
def test_quantization_aware_training_by_two_workers(workplace: Workplace) -> None:
    done = workplace.raq("run", "tiny.yaml", "--set", "qat.workers=2", "--set", "ptq=null", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "qat: done: 2 epochs" in done.stdout
