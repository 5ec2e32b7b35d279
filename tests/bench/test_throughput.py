"""Throughput: several processes at once, in images a second."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raq.artifact import inductor
from raq.bench import throughput
from raq.bench.messages import ContenderSettings, Timed
from raq.bench.throughput import stream_count, throughputs
from raq.environment import available_cpus
from raq.errors import UserError
from raq.experiment.measurement import Bench
from raq.quantize.export import export_network


class Stream:
    """A process that answers with these times."""

    def __init__(self, *samples_ms: float) -> None:
        self.samples_ms = list(samples_ms)

    def warm_up(self, *asked: Any) -> None:
        pass

    def time_round(self, *asked: Any) -> Timed:
        return Timed(self.samples_ms, 1.0, 0.0, 1.0, None)


def test_streams_add_up() -> None:
    """Batches of 4 in 10 ms are 400 images a second; another stream at half the speed does 200 meanwhile."""
    streams: Any = [Stream(10.0, 10.0), Stream(20.0)]
    assert throughput._images_per_s(streams, 4, Bench()) == pytest.approx(600.0)


def test_artifacts_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real ones, a process on each CPU: a row for each, ratios within launches, the best FP32 named."""
    monkeypatch.setattr(throughput, "WINDOW_MS", 2.0)
    monkeypatch.setattr(throughput, "LAUNCHES", 4)
    contenders = []
    for name, width in (("fp32", 4), ("wide", 64)):
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        path = tmp_path / f"{name}.pt2"
        inductor.lower(export_network(network.eval(), torch.zeros(2, 3, 16, 16)), path, {"input": [3, 16, 16]})
        shape = (3, 16, 16)
        contenders.append(
            ContenderSettings(name, "inductor", "cpu", str(path), shape, 2, "", 0, None, fp32=name == "fp32")
        )
    rows = throughputs(contenders, Bench(streams="auto", batch_sizes=(1, 8)), available_cpus())
    assert [(row["candidate"], row["batch_size"]) for row in rows] == [
        ("fp32", 1), ("wide", 1), ("fp32", 8), ("wide", 8),
    ]  # fmt: skip
    for row in rows:
        assert (row["streams"], row["scenario"], row["best_fp32"]) == (
            len(available_cpus()), "offline", "fp32/inductor",
        )  # fmt: skip
        assert len(row["launch_images_per_s"]) == 4
        assert row["speedup"] == row["speedup_over_best_fp32"]
    assert rows[0]["speedup"] == 1.0
    ratios = sorted(w / n for n, w in zip(rows[2]["launch_images_per_s"], rows[3]["launch_images_per_s"], strict=True))
    assert ratios[0] <= rows[3]["speedup"] <= ratios[-1]
    low, high = rows[3]["speedup_interval"]
    assert low <= rows[3]["speedup"] <= high


def test_each_stream_has_a_cpu_of_its_own() -> None:
    assert stream_count(Bench(), [0, 1]) == 0
    assert stream_count(Bench(streams="auto"), [4, 5, 6]) == 3
    assert stream_count(Bench(streams=2), [4, 5, 6]) == 2
    with pytest.raises(UserError, match="4 streams, and there are 3 CPUs"):
        stream_count(Bench(streams=4), [4, 5, 6])
