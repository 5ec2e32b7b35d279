"""The script for a GPU, rehearsed on a CPU, where kernels are the integer reference."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = str(Path(__file__).parents[1] / "gpu" / "run.py")


def rehearse(piece: str, folder: Path) -> dict[str, object]:
    command = [sys.executable, SCRIPT, "--device", "cpu", "--piece", piece, "--out", str(folder)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads((folder / f"cpu-{piece}.json").read_text())


def test_kernels_are_rehearsed_and_not_done_twice(tmp_path: Path) -> None:
    found = rehearse("kernels", tmp_path)
    assert [tile["equal"] for row in found["rows"] for tile in row["tiles"].values()] == [True] * 6
    assert found["gpus"] is None
    assert rehearse("kernels", tmp_path) == found, "its record was there"


@pytest.mark.slow
def test_networks_are_rehearsed(tmp_path: Path) -> None:
    found = rehearse("networks", tmp_path)
    assert [row["contender"] for row in found["rows"] if "ms" in row] == ["fp32", "bf16", "int8"]
    assert any("int8_conv2d" in kernel for kernel in found["kernels"]["int8"])
