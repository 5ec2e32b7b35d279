"""One real run in which PTQ is for Arm and QAT for phones: made, evaluated, lowered where that can be, and reported."""

import json

import pytest
from workplace import Workplace, clear_error

pytestmark = pytest.mark.cluster


@pytest.mark.slow
@pytest.mark.skipif(__import__("platform").machine() != "x86_64", reason="on Arm the candidate would be lowered")
def test_a_run_for_phones_and_for_arm(workplace: Workplace) -> None:
    pytest.importorskip("executorch")
    given = [
        "--set",
        "ptq.backend=arm",
        "--set",
        "qat.backend=xnnpack",
        "--set",
        "qat.epochs=1",
        "--set",
        "bench.rounds=1",
    ]
    done = workplace.raq("run", "tiny.yaml", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ptq is not lowered" in done.stdout
    shown = json.loads(workplace.raq("show", "--json").stdout)
    _, arm, phone = shown["candidates"]
    assert phone["artifacts"][0]["path"].endswith("artifact.pte")
    assert phone["artifacts"][0]["runtime"] == "executorch"
    assert phone["artifacts"][0]["int8_mac_share"] == 1.0
    assert {row["runtime"] for row in phone["latency"]} == {"executorch"}
    assert [row["step"] for row in phone["parity"]] == [
        "fp32", "prepared", "simulated", "converted", "lowered", "reloaded"
    ]  # fmt: skip
    assert arm["artifacts"] == arm["latency"] == []
    assert arm["graph_int8_mac_share"] == 1.0
    assert arm["top1"] > 0.9
    assert "ptq not lowered here" in shown["verdict"]["why"]
    checked = workplace.raq("check", phone["artifacts"][0]["path"])
    assert checked.returncode == 0, checked.stdout
    assert "with ExecuTorch alone" in checked.stdout


def test_a_pte_takes_no_more_than_it_is_made_for(workplace: Workplace) -> None:
    done = workplace.raq("plan", "tiny.yaml", "--set", "ptq.backend=xnnpack", "--set", "lower.max_batch=4")
    assert "lower.max_batch is 4, and bench.batch_sizes has 8" in clear_error(done, 2)
