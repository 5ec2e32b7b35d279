"""A head that does no work, a node that trains, one that measures: every stage runs where the plan said."""

from pathlib import Path

import pytest
from ray_nodes import ray_cluster
from workplace import Workplace

from raq.store.files import read_json
from raq.store.local import Store

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
PLACED = ("train", "quantize", "bench")


def test_the_quickstart_on_three_nodes(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = workplace.folder / "shared"
    roles = {"train": "train", "quantize": "train", "bench": "bench"}
    placed = [f"--set=resources.{pool}.labels={{role: {role}}}" for pool, role in roles.items()]
    head, *workers = (
        ["--num-cpus=0", "--labels=role=head"],
        ["--num-cpus=2", "--labels=role=train"],
        ["--num-cpus=2", "--labels=role=bench", '--resources={"bench": 1}'],
    )
    with ray_cluster(workplace.folder, head, workers) as cluster:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
        planned = plan_of(workplace, cluster.address, placed)
        refused = workplace.raq(
            "plan", str(QUICKSTART), "--address", cluster.address, "--set=resources.train.labels={role: none}"
        )
        assert refused.returncode == 2
        assert "train needs a node with a CPU, role=none, and the cluster has none" in refused.stderr
        done = workplace.raq(
            "submit", str(QUICKSTART), "--address", cluster.dashboard, "--results", str(shared), *placed, timeout=900
        )
    assert done.returncode == 0, done.stdout + done.stderr
    store = Store(shared)
    run = read_json(store.find_run("latest") / "run.json")
    assert set(planned) == set(run["stages"])
    for name, stage in run["stages"].items():
        record = store.find(stage["kind"], stage["fingerprint"])
        assert record is not None
        assert f"role={record['node']['labels']['role']}" in planned[name], name
        assert record["node"]["labels"]["role"] == ("bench" if stage["kind"] == "bench" else "train")


def plan_of(place: Workplace, address: str, placed: list[str]) -> dict[str, str]:
    """Where each stage would be done."""
    done = place.raq("plan", str(QUICKSTART), "--address", address, *placed)
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line for line in done.stdout.splitlines()}
