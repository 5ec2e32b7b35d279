"""The script for a GPU, rehearsed on a CPU, where a layer is the integer reference and int8 the kernels of x86."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = str(Path(__file__).parents[1] / "gpu" / "run")
WRONG = f"""
import sys
sys.path.insert(0, {str(Path(SCRIPT).parent)!r})
import pieces
right = pieces.conv2d
tries = iter(range(99))
pieces.conv2d = lambda *given: right(*given) + (next(tries) > 0)  # the reference comes first
pieces.main()
"""


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
    (tmp_path / "cpu-layer-0.json").write_text(json.dumps(found | {"problem": "a tile is wrong"}))
    assert rehearse("layer-0", tmp_path)["problem"] == "", "done again"


def test_a_piece_that_finds_something_wrong_fails(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRONG, "--device", "cpu", "--piece", "layer-1", "--out", str(tmp_path)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 1
    assert "layer-1: tiles that do not compute what the reference does" in ran.stderr
    assert json.loads((tmp_path / "cpu-layer-1.json").read_text())["problem"]


@pytest.mark.slow
def test_networks_are_rehearsed(tmp_path: Path) -> None:
    found = rehearse("resnet18-cifar", tmp_path)
    assert {(row["candidate"], row["runtime"]) for row in found["rows"]} == {
        ("fp32", "eager"), ("fp32", "inductor"), ("ptq", "inductor"),
    }  # fmt: skip
    assert rehearse("published", tmp_path)["published"]["protocol"] == "published"
