"""Training that goes on when nodes come and go."""

import subprocess

import pytest
from ray_nodes import ray_cluster
from workplace import Workplace

from raq.plan.prepare import prepare
from raq.stages.call import Call
from raq.stages.dispatch import run_stage
from raq.store.files import read_json
from raq.store.local import Store

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
EPOCHS = 60
ONE = ("--num-cpus=1",)
WITH_BENCH = ("--num-cpus=1", '--resources={"bench": 1}')


def test_training_goes_on_when_a_node_is_lost(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of one CPU, one of them lost: the same losses as by one worker, no epoch twice or missing."""
    shared = workplace.folder / "shared"
    settings = (f"train.epochs={EPOCHS}", "train.lr=0.005", "ptq=null", "qat=null", "bench.rounds=1")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with ray_cluster(workplace.folder, ["--num-cpus=0"], [WITH_BENCH, ONE]) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
        command = workplace.command("submit", "tiny.yaml", "--address", cluster.dashboard, "--results", str(shared))
        command += [f"--set={setting}" for setting in (*settings, "train.workers=[1, 2]")]
        process = subprocess.Popen(command, cwd=workplace.folder, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("train: running: epoch 20:"):
                cluster.lose(1)
        assert process.wait(timeout=300) == 0, "".join(lines)
    store = Store(shared)
    run = read_json(store.find_run("latest") / "run.json")
    record = store.find("train", run["stages"]["train"]["fingerprint"])
    assert record is not None
    history = record["results"]["history"]
    assert [row["epoch"] for row in history] == list(range(EPOCHS))
    workers = [row["workers"] for row in history]
    assert workers[0] == 2
    assert workers[-1] == 1
    assert workers == sorted(workers, reverse=True)
    monkeypatch.chdir(workplace.folder)
    stage = prepare(workplace.experiment, [*settings, "train.workers=1"]).plan[0]
    where, work = str(workplace.folder), str(workplace.folder / "alone")
    alone = run_stage(
        Call(
            name="train", kind="train", settings=stage.settings, inputs={}, folder=work, working_directory=where, cpus=2
        ),
        lambda row: None,
    )["history"]
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in alone], rel=0.05, abs=0.002)
