"""Candidates that raq does not quantize: half precision, and other tools' int8, through the stages of a run."""

from pathlib import Path
from typing import Any

import pytest
from one_machine import Machine
from workplace import Workplace

from raq.environment import machine
from raq.experiment.measurement import Require
from raq.plan.facts import HALF_FEATURES
from raq.plan.requirements import check_results


def done(own: Machine, *names: str) -> dict[str, dict[str, Any]]:
    """The results of these stages, each held to what is required."""
    found = {}
    for name in names:
        found[name] = own.do(name)
        check_results(own.plan()[name], found[name], Require())
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    not set(HALF_FEATURES["bfloat16"]) & set(machine().features), reason="this CPU does not compute in bfloat16"
)
def test_half_precision(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As large as half of FP32, as accurate, and in kernels of 16 bits alone; each step computes the same."""
    monkeypatch.chdir(workplace.folder)
    own = Machine(workplace, "half.dtypes=[bfloat16]", "ptq=null", "qat=null", "train.epochs=2")
    found = done(own, "train", "bf16", "lower/bf16", "evaluate/bf16")
    lower, evaluate = found["lower/bf16"], found["evaluate/bf16"]
    assert lower["int8_mac_share"] == 0.0
    assert lower["weight_bytes"] < 0.55 * found["train"]["weight_bytes"]
    assert evaluate["executed_half_mac_share"] == 1.0
    assert evaluate["top1"] > 0.5
    steps = [(row["against"], row["step"]) for stage in found.values() for row in stage.get("parity", [])]
    assert steps == [(None, "fp32"), ("fp32", "converted"), ("converted", "lowered"), ("lowered", "reloaded")]


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["onnxruntime", "nncf"])
def test_what_another_tool_quantizes(tool: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of integers that computes nearly the same; how much of it ran in int8 is known, and not required."""
    monkeypatch.chdir(workplace.folder)
    own = Machine(workplace, f"ptq.others=[{tool}]", "qat=null", "train.epochs=2", "parity.images=null")
    found = done(own, "train", f"lower/{tool}", f"evaluate/{tool}")
    lower, evaluate = found[f"lower/{tool}"], found[f"evaluate/{tool}"]
    assert lower["int8_mac_share"] == 1.0
    assert "audit" not in lower
    assert lower["weight_bytes"] < 0.3 * found["train"]["weight_bytes"]
    assert lower["float_weight_share"] < 0.1
    assert evaluate["executed_int8_mac_share"] == 1.0
    steps = [(row["against"], row["step"]) for stage in found.values() for row in stage.get("parity", [])]
    assert steps == [(None, "fp32"), ("fp32", "lowered"), ("lowered", "reloaded")]
    assert {row["images"] for stage in found.values() for row in stage.get("parity", [])} == {203}, "null: all of them"
    (file,) = Path(own.folder(own.plan()[f"lower/{tool}"])).glob("*.onnx")
    assert file.stat().st_size == lower["size_bytes"]
