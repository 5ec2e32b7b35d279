"""`raq submit` to a real head with a token, a process of its own."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray_nodes import Head, job_process, ray_cluster
from workplace import Workplace, clear_error

from raq.errors import RaqError
from raq.submit import job as submission
from raq.submit import job_log as following
from raq.submit.job_log import Lines

pytestmark = pytest.mark.cluster
ONLY_FP32 = ("--set", "ptq=null", "--set", "qat=null", "--set", "bench.rounds=1", "--set", "bench.batch_sizes=[1]")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Iterator[Head]:
    """One head for all tests here: two CPUs, which may measure."""
    with ray_cluster(tmp_path_factory.mktemp("logs"), ["--num-cpus=2", '--resources={"bench": 1}']) as found:
        yield found


@pytest.fixture
def with_token(head: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", head.token)


def submit(place: Workplace, head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    shared = str(place.folder / "shared")
    return place.raq("submit", "tiny.yaml", "--address", head.dashboard, "--results", shared, *arguments)


def test_without_the_token_nothing_is_taken(head: Head, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert "refuses" in clear_error(submit(workplace, head), 2)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", wrong := "0" * 64)
    error = clear_error(submit(workplace, head), 2)
    assert "refuses" in error
    assert wrong not in error


@pytest.mark.slow
@pytest.mark.usefixtures("with_token")
def test_a_job_is_a_run(head: Head, workplace: Workplace) -> None:
    """The stage lines of a local run, its table, its records in the shared folder; the user's own code was sent."""
    done = submit(workplace, head, *ONLY_FP32)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("train", "lower/fp32", "evaluate/fp32", "bench/cpu"):
        assert f"{stage}: done" in done.stdout
    assert "inductor" in done.stdout
    assert "has succeeded" in done.stdout
    assert head.token not in done.stdout + done.stderr
    assert not (workplace.folder / "results").exists()
    shown = workplace.raq_here("show", "latest", "--results", "shared")
    assert shown.returncode == 0, shown.stderr
    assert head.token not in "".join(file.read_text() for file in (workplace.folder / "shared").rglob("*.json"))


@pytest.mark.usefixtures("with_token")
def test_the_code_of_a_failed_run_comes_back(head: Head, workplace: Workplace) -> None:
    done = submit(workplace, head, "--set", "model.weights=/nowhere/w.pt")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "raq: model.weights: /nowhere/w.pt cannot be read" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("with_token")
def test_interrupted_away_from_a_terminal_the_job_is_left(head: Head, workplace: Workplace) -> None:
    shared = str(workplace.folder / "shared")
    command = workplace.command("submit", "tiny.yaml", "--address", head.dashboard, "--results", shared,
                                "--set", "train.epochs=500")  # fmt: skip
    process = subprocess.Popen(command, cwd=workplace.folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    job = process.stdout.readline().split()[1]
    for line in process.stdout:
        if "train: running" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0
    assert "detached: the job goes on" in rest
    assert head.ask(f"/api/jobs/{job}")["status"] == "RUNNING"
    running = job_process(shared)
    assert running is not None
    os.kill(running, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.usefixtures("with_token")
def test_a_job_whose_process_is_killed_is_sent_again(head: Head, workplace: Workplace) -> None:
    """It goes on where it was; that it was lost is said."""
    shared = str(workplace.folder / "shared")
    command = workplace.command("submit", "tiny.yaml", "--address", head.dashboard, "--results", shared, *ONLY_FP32)
    process = subprocess.Popen(command, cwd=workplace.folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "train: done" in line:
            job = job_process(shared)
            assert job is not None
            os.kill(job, signal.SIGKILL)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 0, rest
    assert "was lost: its process was killed; submitted again, 2 of at most 3 times" in rest
    assert "train: done" not in rest
    assert "has succeeded" in rest


def test_addresses_that_are_none(workplace: Workplace) -> None:
    shared = ("--results", "/shared")
    for address, said in (("ray://x:1", "not the address"), ("127.0.0.1:9", "no job server of Ray answers")):
        assert said in clear_error(workplace.raq_here("submit", "tiny.yaml", "--address", address, *shared), 2)
    reported = workplace.raq_here("submit", "tiny.yaml", "--address", "http://user:word@127.0.0.1:9", *shared)
    assert "word" not in clear_error(reported, 2)
    here = workplace.raq_here("submit", "tiny.yaml", "--address", "127.0.0.1:9", "--results", "results")
    assert "give the absolute path" in clear_error(here, 2)
    secret = "s3://key:word@bucket/folder"
    reported = workplace.raq_here("submit", "tiny.yaml", "--address", "127.0.0.1:9", "--results", secret)
    assert "word@" not in clear_error(reported, 2)


def test_a_log_that_comes_again_is_told_once() -> None:
    reported: list[str] = []
    lines = Lines(reported.append)
    for piece in ("one\ntw", "o\nthr"):
        lines.take(piece)
    lines.again()  # the connection broke within the third
    for piece in ("one\n", "two\nthree\r\nfour"):
        lines.take(piece)
    assert reported == ["one", "two", "three"]
    lines.ended()
    assert reported == ["one", "two", "three", "four"]


class EndedFirst:
    """A job server that says that the job has ended before the log's last lines come."""

    def get_job_info(self, job: str) -> SimpleNamespace:
        return SimpleNamespace(status="FAILED")

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "train: running\n"
        await asyncio.sleep(0.5)
        yield "raq: train: no space is left\n"


def test_the_last_lines_of_a_job_that_has_ended_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error stands there; a job that failed without one is a riddle."""
    monkeypatch.setattr(following, "LOOK_AGAIN_S", 0.4)
    reported: list[str] = []
    assert asyncio.run(following.followed(EndedFirst(), "job", reported.append))
    assert reported == ["train: running", "raq: train: no space is left"]


@pytest.mark.parametrize(
    ("said", "missing"),
    [
        ("... last available logs:\n/usr/bin/python: No module named raq\n", "raq"),
        ("Traceback (most recent call last):\n  ...\nModuleNotFoundError: No module named 'typer'\n", "typer"),
        ("raq: model own:net: cannot be imported: ModuleNotFoundError: No module named 'own'", None),
        ("raq: a fault\nModuleNotFoundError: No module named 'own'", None),
        ("Killed", None),
    ],
)
def test_a_cluster_whose_python_has_no_raq_is_told(said: str, missing: str | None) -> None:
    class Client:
        def get_job_info(self, job: str) -> Any:
            return SimpleNamespace(status="FAILED", driver_exit_code=1, message=said)

    if missing is None:
        assert submission._ended(Client(), "j", print, "/results", began=True) == 1
        return
    with pytest.raises(RaqError, match=f"the cluster's `python` has no module {missing}"):
        submission._ended(Client(), "j", print, "/results", began=True)
