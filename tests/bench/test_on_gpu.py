"""Contenders on a GPU, as far as a machine without one can tell: which there are, and what disturbs them."""

from dataclasses import replace
from typing import Any

import pytest

from raq.bench.messages import ContenderSettings
from raq.bench.noise import Sample
from raq.bench.on_gpu import disturbance, ways
from raq.bench.rows import Round
from raq.experiment.measurement import Bench
from raq.report.ratios import runtime_of


def contender(candidate: str, runtime: str) -> ContenderSettings:
    return ContenderSettings(candidate, runtime, "cuda", "x", (), 1, "m", 10, None, fp32=candidate == "fp32")


def gpu(reasons: str | None = "0x0000000000000000", processes: int | None = 3) -> dict[str, Any]:
    return {"index": 0, "mhz": 1980.0, "celsius": 40.0, "throttle_reasons": reasons, "processes": processes}


def test_fp32_is_measured_in_tf32_too_and_packages_as_graphs_too() -> None:
    given = [contender("fp32", "eager"), contender("fp32", "inductor"), contender("ptq", "inductor")]
    assert [one.name for one in ways(given, Bench())] == [
        "fp32/eager", "fp32/eager+tf32", "fp32/inductor", "fp32/inductor+tf32", "fp32/inductor+graph",
        "fp32/inductor+tf32+graph", "ptq/inductor", "ptq/inductor+graph",
    ]  # fmt: skip
    assert ways(given, Bench(tf32=False, cuda_graphs=False)) == given
    on_cpu = [replace(one, device="cpu") for one in given]
    assert ways(on_cpu, Bench()) == on_cpu


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ([gpu()], [gpu("0x0000000000000005")], ""),  # idle; and limited by its power, which is its own work
        ([gpu()], [gpu("0x0000000000000020")], "clocks lowered: heat (software)"),
        ([gpu("0x0000000000000088")], None, "clocks lowered: hardware slowdown, clocks lowered: power brake"),
        ([gpu(processes=4)], [gpu()], "other processes"),
        ([gpu(None, None)], None, ""),
        (None, None, ""),
    ],
)
def test_what_slowed_gpus_down(before: Any, after: Any, said: str) -> None:
    assert disturbance(before, after, own=3) == said


def test_rounds_beside_other_processes_are_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    from raq.bench import on_gpu

    found = Round(0, {"a": [Sample([1.0], 0.0, 0.0, 0.0, 0, disturbed=False)]})
    monkeypatch.setattr(on_gpu, "gpu_state", lambda: [gpu()])
    on_gpu.judge([found], [gpu()], own=3)
    assert not found.sample("a").excluded
    on_gpu.judge([found], [gpu(processes=5)], own=3)
    assert found.sample("a").excluded
    assert found.sample("a").gpu == "other processes"


def test_a_way_of_calling_is_no_other_runtime() -> None:
    row: Any = {"runtime": "inductor+tf32+graph"}
    assert runtime_of(row) == "inductor"
