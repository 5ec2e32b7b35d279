"""Two runs side by side: what is real, what is not, and what cannot be compared."""

import numpy as np
import pytest

from raq.experiment.metric import Metric
from raq.report.claims import Rules
from raq.report.comparison import _accuracy, _conditions, _difference, _environment
from raq.sweep.answers import Answers


def environment(cpu: str, torch: str) -> dict:
    return {"machine": {"cpu": cpu, "features": [], "cpus": 2, "gpus": []}, "versions": {"torch": torch, "ray": "2"}}


def test_a_change_of_machine_is_told() -> None:
    assert _environment(environment("a", "2.14"), environment("a", "2.14")) == []
    assert _environment(environment("a", "2.14"), environment("b", "2.15")) == ["cpu: a and b", "torch: 2.14 and 2.15"]


def fp32(threads: int = 2, disturbed: int = 0, far: int = 0) -> list[dict]:
    """FP32 in eager mode and compiled, in ten launches of a round each."""
    rows = [
        {
            "runtime": runtime, "device": "cpu", "batch_size": 1, "threads": threads, "baseline": "fp32/eager",
            "round_p50_ms": [ms + 0.001 * n for n in range(10)], "round_launch": list(range(10)),
            "round_disturbed": [n < disturbed for n in range(10)], "round_far": [n < far for n in range(10)],
        }
        for runtime, ms in (("eager", 2.0), ("inductor", 1.0))
    ]  # fmt: skip
    return [{"name": "fp32", "kind": "fp32", "artifacts": [], "latency": rows}]


def run_of(name: str, **changes) -> dict:
    return {
        "run": name, "experiment": "e", "complete": True, "error": None, "data": {"digest": "d"},
        "measurement": [{"protocol": "interleaved"}], "candidates": fp32(), "executions": {"train": name},
        "made_anew": [], **changes,
    }  # fmt: skip


def test_what_is_not_the_same_besides_is_told() -> None:
    assert _conditions(run_of("a"), run_of("b", candidates=fp32(disturbed=4))) == [], (
        "six undisturbed rounds are enough"
    )
    other = run_of(
        "b", experiment="f", complete=False, error="interrupted", data={"digest": "x"},
        measurement=[{"protocol": "published"}], candidates=fp32(threads=1, disturbed=9),
    )  # fmt: skip
    assert _conditions(run_of("a"), other) == [
        "b is not complete: interrupted",
        "experiment: e and f",
        "the data are not the same",
        "protocols: interleaved and published",
        "numbers of threads: 2 and 1",
        "b was measured on a machine that was disturbed",
    ]
    assert _conditions(run_of("a"), run_of("b", candidates=fp32(disturbed=9, far=8))) == [
        "b was measured where the CPUs were far apart"
    ]


def test_runs_of_the_same_executions_cannot_differ() -> None:
    """After --fresh an earlier run shows the newer ones."""
    newer = run_of("a", executions={"train": "b"}, made_anew=["train"])
    assert _conditions(newer, run_of("b")) == [
        "both show the same executions of every stage, so nothing can differ",
        "a: made anew since: train",
    ]


def test_top1_is_compared_on_the_same_images_only() -> None:
    labels = np.arange(1000) % 10
    right = predicted(np.stack([labels, labels]))
    worse = predicted(np.stack([np.where(np.arange(1000) < 50, (labels + 1) % 10, labels), labels]))
    rules = Rules(max_drop=1.0)
    found = _accuracy("ptq", {"ptq": right}, {"ptq": worse}, rules)
    assert found["points"] == pytest.approx(-5.0)
    assert found["interval"][1] < 0
    assert found["said"].endswith("different")
    assert found["p"] < 1e-9
    assert _accuracy("ptq", {"ptq": right}, {"ptq": right}, rules)["said"].endswith("the same images right")
    fewer, others = right.values[:, :900], np.stack([labels, (labels + 1) % 10])
    for other in (None, predicted(fewer), predicted(others)):
        assert _accuracy("ptq", {"ptq": right}, {"ptq": other}, rules)["points"] is None


def test_scores_are_compared_sample_by_sample_and_more_is_better() -> None:
    """Errors that are 0.02 larger on every sample, which differ among themselves by far more."""
    metric, draws = Metric.model_validate("mse"), np.random.default_rng(0)
    errors = draws.exponential(1.0, 1000)
    before, after = (Answers(metric, values, False, 1000) for values in (errors, errors + 0.02))
    found = _accuracy("ptq", {"ptq": before}, {"ptq": after}, Rules(max_drop=0.1, metric=metric))
    assert found["points"] == pytest.approx(-0.02)
    assert found["interval"][0] <= -0.02 <= found["interval"][1] < 0


def predicted(values: np.ndarray) -> Answers:
    return Answers(Metric(), values, False, values.shape[1])


def test_equal_is_what_lies_within_the_margin() -> None:
    assert _difference(-0.2, 0.1, 0.0, -0.3, 0.3, "0.3 points") == "equal within 0.3 points"
    assert _difference(-0.2, 0.4, 0.0, -0.3, 0.3, "0.3 points") == "cannot tell"
    assert _difference(0.1, 0.4, 0.0, -0.3, 0.3, "0.3 points") == "different"
