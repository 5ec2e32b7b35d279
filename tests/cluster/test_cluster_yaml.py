"""cluster.yaml: what Ray's own schema and validator say of it, and what must never be lost from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raq.cluster.nodes import Node
from raq.cluster.resources import placement
from raq.errors import UserError
from raq.experiment.execution import Resources
from raq.plan.stages import Stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_ray_takes_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert set(prepared["available_node_types"]) == {"head", "cpu", "gpu"}
    broken = {**config, "available_node_types": {"head": {"resources": {"CPU": "none"}, "node_config": {}}}}
    with pytest.raises(Exception, match="CPU"):  # Ray's validator does look
        validate_config(prepare_config(broken))


def test_nobody_else_reaches_it(config: dict[str, Any]) -> None:
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "0.0.0.0" not in str(config)
    assert any("export RAY_AUTH_MODE=token" in command for command in config["setup_commands"])
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert {".git", ".venv", "results"} <= set(config["rsync_exclude"])


def test_its_nodes_take_every_stage(config: dict[str, Any]) -> None:
    """The head does none; a measurement has a node that is not taken away; training may have spot machines."""
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    nodes = [
        Node(t["resources"]["CPU"], t["resources"].get("GPU", 0), "bench" in t["resources"], name)
        for name, t in types.items()
    ]
    assert placement(Stage("ptq", "ptq", "quantize", {}, {}, "", Resources()), nodes) == "8 CPUs on cpu or gpu"
    assert placement(Stage("bench", "bench", "bench", {}, {}, "", Resources()), nodes) == "8 CPUs on cpu, alone"
    training = Stage("train", "train", "train", {}, {}, "", Resources(cpus=4, gpus=1))
    assert placement(training, nodes) == "4 CPUs, 1 GPU on gpu"
    with pytest.raises(UserError, match="2 workers of 4 CPUs and 1 GPUs, and the cluster has room for 1"):
        placement(replace(training, workers=2), nodes)
    measures = [t for t in types.values() if "bench" in t["resources"]]
    assert measures
    assert all("InstanceMarketOptions" not in t["node_config"] for t in measures)
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_rayjob_of_the_readme_is_yaml() -> None:
    (text,) = [
        block for block in (ROOT / "experiments" / "cluster.md").read_text().split("```") if "kind: RayJob" in block
    ]
    spec = yaml.safe_load(text.removeprefix("yaml"))["spec"]
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    assert groups[0]["rayStartParams"]["num-cpus"] == "0"
    assert json.loads(json.loads(groups[1]["rayStartParams"]["resources"])) == {"bench": 1}
    for group in groups:  # all see the folder that results go to
        pod = group["template"]["spec"]
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/shared"
        assert pod["containers"][0]["volumeMounts"][0]["name"] == pod["volumes"][0]["name"]
