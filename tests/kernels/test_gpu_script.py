"""The script for a GPU, rehearsed on a CPU, where a layer is the integer reference and int8 the kernels of x86."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = str(Path(__file__).parents[1] / "gpu" / "run")


def rehearse(piece: str, folder: Path) -> dict[str, object]:
    command = [SCRIPT, "--device", "cpu", "--piece", piece, "--out", str(folder)]
    environment = {**os.environ, "PYTHON": sys.executable}
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads((folder / f"cpu-{piece}.json").read_text())


def test_a_layer_is_rehearsed_and_not_done_twice(tmp_path: Path) -> None:
    found = rehearse("layer-0", tmp_path)
    assert [tile["equal"] for tile in found["tiles"].values()] == [True]
    assert found["gpus"] is None
    assert rehearse("layer-0", tmp_path) == found, "its record was there"


@pytest.mark.slow
def test_networks_are_rehearsed(tmp_path: Path) -> None:
    found = rehearse("resnet18-cifar", tmp_path)
    assert {(row["candidate"], row["runtime"]) for row in found["rows"]} == {
        ("fp32", "eager"), ("fp32", "inductor"), ("ptq", "inductor"),
    }  # fmt: skip
    assert rehearse("published", tmp_path)["published"]["protocol"] == "published"
