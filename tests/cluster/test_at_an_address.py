"""Nodes that share no folder: results, checkpoints and trials lie in S3 (a real server), each node has its cache."""

from pathlib import Path

import pytest
from ray_nodes import ray_cluster
from s3_server import BUCKET, CREDENTIALS, s3_server
from workplace import Workplace

import raq
from raq.store.opening import open_store
from raq.store.remote import RemoteStore

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
WORKER = ["--num-cpus=1", '--resources={"bench": 1}']
SWEEPS = """
sweep:
  ptq: {calibration.size: [32, 64]}
  qat: {lr: [0.001, 0.01]}
  layers: {}
  search: grid
  scheduler: none
"""


def test_a_run_with_all_sweeps_on_nodes_that_share_nothing(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workplace.experiment.write_text(workplace.experiment.read_text() + SWEEPS)
    fewer = ["train.workers=2", "train.epochs=2", "qat.epochs=1", "bench.batch_sizes=[1]", "bench.rounds=1"]
    settings = [f"--set={setting}" for setting in fewer]
    with s3_server(tmp_path) as (address, _):
        with ray_cluster(tmp_path, ["--num-cpus=0"], [WORKER, WORKER], caches=True) as cluster:
            monkeypatch.setenv("RAY_AUTH_MODE", "token")
            monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
            arguments = ("submit", "tiny.yaml", "--address", cluster.dashboard, "--results", address, *settings)
            done = workplace.raq(*arguments, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"s3://{BUCKET}/raq/stages/lower-" in done.stdout
        monkeypatch.setenv("RAQ_CACHE", str(tmp_path / "mine"))  # a machine that had no part in it
        shown = workplace.raq("show", "--results", address)
        assert shown.returncode == 0, shown.stderr
        base, _, options = address.partition("?")
        run = raq.open_run(f"{base}/runs/latest?{options}")
        assert run.record["complete"]
        trials = run.trials()
        assert set(trials["sweep"]) == {"ptq", "qat", "layers"}
        assert trials["error"].isna().all()
        store = open_store(address)
        assert isinstance(store, RemoteStore)
        assert store.storage.sizes("work") == {}, "nothing is left of what was unfinished"
        secrets = [*CREDENTIALS.values(), cluster.token]
        for name in store.storage.sizes(""):
            content = store.storage.read(name) or b""
            assert not any(secret.encode() in content for secret in secrets), name
    assert not any(secret in done.stdout + done.stderr + shown.stdout for secret in secrets)
