"""Throughput: several processes at once, in images a second."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
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
from raq.experiment.inputs import image_input
from raq.experiment.measurement import Bench
from raq.quantize.export import export_network


class Stream:
    """A process that answers with these times."""

    def __init__(self, *samples_ms: float, waited_s: float | None = None) -> None:
        self.samples_ms, self.waited_s = list(samples_ms), waited_s
        self.asked_ms = 0.0

    def warm_up(self, *asked: Any) -> None:
        pass

    def time_round(self, size: int, repetitions: int, round_ms: float) -> Timed:
        self.asked_ms = round_ms
        return Timed(self.samples_ms, 2.0, self.waited_s, 1.0, None)


def test_streams_add_up_while_none_has_ended() -> None:
    """Batches of 4 in 10 ms are 400 images a second; one at half the speed does 200; what it does alone is none."""
    streams: Any = [Stream(10.0, 10.0, 10.0), Stream(20.0, 5.0, 5.0), Stream(25.0, waited_s=0.5)]
    found = throughput._images_per_s(streams, 4, Bench())
    calls = 2.5 + 2 + 1  # within 25 ms, which is when the last one ends
    assert found.images_per_s == pytest.approx(4 * calls / 0.025)
    assert found.waited_share == 0.25
    assert streams[0].asked_ms == throughput.WINDOW_MS
    slow: Any = [Stream(400.0), Stream(400.0)]
    throughput._images_per_s(slow, 4, Bench())
    assert slow[0].asked_ms == 3 * 400.0, "several calls of a batch that takes long"


@pytest.mark.slow
def test_artifacts_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two real ones, a process on each CPU: a row for each, ratios within launches, the best FP32 named."""
    monkeypatch.setattr(throughput, "WINDOW_MS", 2.0)
    monkeypatch.setattr(throughput, "LAUNCHES", 4)
    contenders = []
    for name, width in (("wide", 64), ("fp32", 4)):
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        path = tmp_path / f"{name}.pt2"
        inductor.lower(export_network(network.eval(), torch.zeros(2, 3, 16, 16)), path, {"input": [3, 16, 16]})
        shape = (image_input((3, 16, 16)),)
        contenders.append(
            ContenderSettings(name, "inductor", "cpu", str(path), shape, 2, "", 0, None, fp32=name == "fp32")
        )
    rows = throughputs(contenders, Bench(streams="auto", batch_sizes=(1, 8)), available_cpus())
    assert [(row["candidate"], row["batch_size"]) for row in rows] == [
        ("wide", 1), ("fp32", 1), ("wide", 8), ("fp32", 8),
    ]  # fmt: skip
    for row in rows:
        assert (row["streams"], row["scenario"]) == (len(available_cpus()), "offline")
        assert (row["baseline"], row["best_fp32"]) == ("wide/inductor", "fp32/inductor")
        assert len(row["launch_images_per_s"]) == 4
    wide, fp32 = rows[2:]
    assert (wide["speedup"], fp32["speedup_over_best_fp32"]) == (1.0, 1.0)
    assert fp32["speedup"] == pytest.approx(1 / wide["speedup_over_best_fp32"], rel=1e-3)
    ratios = sorted(f / w for f, w in zip(fp32["launch_images_per_s"], wide["launch_images_per_s"], strict=True))
    assert ratios[0] <= fp32["speedup"] <= ratios[-1]
    low, high = fp32["speedup_interval"]
    assert low <= fp32["speedup"] <= high


def test_no_launch_begins_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two in any case, of which there is no interval."""
    times = iter([0.0, 11.0])  # asked before the third launch: two have orders that are one another's reverse
    monkeypatch.setattr(throughput, "_launched", lambda *asked: nullcontext([Stream(10.0)]))
    monkeypatch.setattr(throughput, "fork_server", lambda runtimes: nullcontext())
    monkeypatch.setattr(throughput, "time", SimpleNamespace(monotonic=lambda: next(times)))
    contender = ContenderSettings("fp32", "eager", "cpu", "", (image_input((3, 8, 8)),), 2, "", 0, None, fp32=True)
    (row,) = throughputs([contender], Bench(streams=1, batch_sizes=(2,), budget_s=10), available_cpus())
    assert row["launch_images_per_s"] == [pytest.approx(200.0)] * 2
    assert row["speedup_interval"] is None


def test_each_stream_has_a_cpu_of_its_own() -> None:
    assert stream_count(Bench(), [0, 1]) == 0
    assert stream_count(Bench(streams="auto"), [4, 5, 6]) == 3
    assert stream_count(Bench(streams=2), [4, 5, 6]) == 2
    with pytest.raises(UserError, match="4 streams, and there are 3 CPUs"):
        stream_count(Bench(streams=4), [4, 5, 6])
