"""The measurement: processes of their own, taking turns; and the arithmetic of a row."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raq.bench.latency import ContenderSettings, _row, measure
from raq.bench.machine import available_cpus
from raq.errors import StageError
from raq.experiment import Bench
from raq.model.zoo import build_model

PROTOCOL = Bench(batch_sizes=(1, 4), rounds=6, repetitions=2, round_ms=0.0, warmup=1)


@pytest.fixture(scope="module")
def contender(tmp_path_factory: pytest.TempPathFactory) -> ContenderSettings:
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save(build_model("resnet20-cifar", 10).state_dict(), path)
    return ContenderSettings("fp32/eager", "eager", "cpu", str(path), (3, 16, 16), 1, "resnet20-cifar", 10, None)


def test_two_contenders_measured(contender: ContenderSettings) -> None:
    before = os.sched_getaffinity(0)
    seen: list[int] = []
    found = measure([contender, replace(contender, name="ptq/eager")], PROTOCOL, available_cpus()[:1], seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert os.sched_getaffinity(0) == before
    assert [(row["candidate"], row["batch_size"]) for row in found["rows"]] == [
        ("fp32", 1), ("ptq", 1), ("fp32", 4), ("ptq", 4),
    ]  # fmt: skip
    for row in found["rows"]:
        assert [len(samples) for samples in row["samples_ms"]] == [2] * 6
        assert row["first_ms"] > 0
        assert row["p99_ms"] is None, "12 samples bear no p99"
        assert row["threads"] == 1
    assert found["rows"][0]["speedup"] == 1.0


def test_the_published_protocol_is_one_round_without_an_interval(contender: ContenderSettings) -> None:
    published = Bench(batch_sizes=(2,), rounds=1, repetitions=5, round_ms=0.0, warmup=2)
    row = measure([contender], published, available_cpus()[:1])["rows"][0]
    assert (row["samples"], row["rounds"]) == (5, 1)


def test_a_row_from_known_samples(contender: ContenderSettings) -> None:
    samples = {
        ("fp32/eager", 1): [[10.0, 10.0], [30.0, 30.0], [20.0, 20.0]] * 2,
        ("ptq/eager", 1): [[5.0, 5.0], [10.0, 10.0], [10.0, 10.0]] * 2,
    }
    row = _row(replace(contender, name="ptq/eager"), 1, samples, 1.0, 2.0)
    assert row["speedup"] == 2.0  # ratios within rounds: 2, 3, 2
    assert row["p50_ms"] == 10.0
    assert row["mean_ms"] == pytest.approx(50 / 6)
    assert row["std_ms"] == pytest.approx(2.4618, abs=1e-4)
    assert row["speedup_interval"] == [2.0, 3.0]


def test_a_contender_that_cannot_load(contender: ContenderSettings, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"fp32/eager: .*none\.pt cannot be read"):
        measure([replace(contender, path=str(tmp_path / "none.pt"))], PROTOCOL, available_cpus()[:1])
