"""Trackers with their own libraries, read back with these: what a run told is what stands there."""

import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from kept_records import judged_now

from raq.experiment.schema import Experiment
from raq.tracking.tracker import Trackers, refuse_missing, results_of, start_tracking

EPOCHS = [
    {
        "epoch": 0,
        "loss": 1.5,
        "validation": 0.25,
        "validation_top1": 0.25,
        "images_per_s": 100.0,
        "side": 32,
        "lr": None,
    },
    {
        "epoch": 1,
        "loss": 0.5,
        "validation": 0.75,
        "validation_top1": 0.75,
        "images_per_s": 90.0,
        "side": 32,
        "lr": None,
    },
]
TRIALS = [{"number": 0, "config": {"lr": 0.1, "optimizer": "sgd"}, "value": 0.5, "state": "complete"},
          {"number": 1, "config": {"lr": 0.2, "optimizer": "adamw"}, "value": 0.6, "state": "complete"}]  # fmt: skip


def told(names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run's events and end, told to these trackers; what was noted."""
    notes: list[str] = []
    folder.mkdir()
    experiment = Experiment.model_validate({"name": "told", "tracking": names})
    trackers = start_tracking(experiment, folder, notes.append)
    for row in EPOCHS:
        trackers.stage("train", {"state": "running", "epoch_done": row})
    trackers.stage("train", {"state": "running", "share": 0.5})
    trackers.stage("sweep/qat", {"state": "done", "results": {"trials": TRIALS}})
    monkeypatch.setattr("raq.tracking.tracker.summarise", lambda folder: judged_now("cifar10"))
    trackers.finished(folder)
    return notes


def scalars_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in a folder's event files, as TensorFlow's records hold them: length, sum, event, sum."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (size,) = struct.unpack("<Q", raw[at : at + 8])
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(["tensorboard"], tmp_path / "run", monkeypatch) == []
    found = scalars_of(tmp_path / "run" / "tensorboard")
    assert found["train/loss"] == [(1, 1.5), (2, 0.5)]
    assert found["train/validation"] == [(1, 0.25), (2, 0.75)]
    for name, value in results_of(judged_now("cifar10")).items():
        assert found[f"result/{name}"] == [(0, pytest.approx(value, rel=1e-6))]
    assert sorted(found["value"]) == [(1, 0.5), (2, pytest.approx(0.6))]


def test_results_are_those_of_the_record() -> None:
    summary = judged_now("cifar10")
    found, ptq = results_of(summary), next(one for one in summary["candidates"] if one["name"] == "ptq")
    row = next(row for row in ptq["latency"] if row["batch_size"] == 1)
    assert found["ptq/top1"] == ptq["top1"]
    assert found["ptq/inductor/cpu/batch_1/p50_ms"] == row["p50_ms"]
    assert found["ptq/inductor/cpu/batch_1/speedup_over_best_fp32"] == row["speedup_over_best_fp32"]


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert told(["mlflow"], tmp_path / "run", monkeypatch) == []
    client = mlflow.MlflowClient(tracking_uri=store_of_mlflow(tmp_path / "run"))
    (experiment,) = [one for one in client.search_experiments() if one.name == "told"]
    runs = client.search_runs([experiment.experiment_id])
    (own,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [(m.step, m.value) for m in client.get_metric_history(own.info.run_id, "train/loss")] == [(1, 1.5), (2, 0.5)]
    assert own.data.params["ptq.calibration.size"] == "256"
    assert own.data.tags["verdict"] == judged_now("cifar10")["verdict"]["why"]
    assert own.info.status == "FINISHED"
    children = {run.data.params["optimizer"]: run.data.metrics["value"] for run in runs if run is not own}
    assert children == {"sgd": 0.5, "adamw": 0.6}


def store_of_mlflow(folder: Path) -> str:
    from raq.tracking.to_mlflow import place_of

    return place_of(folder)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert told(["wandb"], tmp_path / "run", monkeypatch) == []
    (path,) = (tmp_path / "run").rglob("*.wandb")
    until = time.monotonic() + 60  # its service writes, a while after finish() has returned
    while b"ptq/inductor/cpu/batch_1/p50_ms" not in path.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"train/loss" in path.read_bytes()
    assert b"ptq/inductor/cpu/batch_1/p50_ms" in path.read_bytes()
    (table,) = (tmp_path / "run").rglob("*.table.json")
    assert [row[-1] for row in json.loads(table.read_text())["data"]] == [0.5, 0.6]


class Broken:
    """A tracker whose library fails."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("away")

    def trial(self, sweep: str, number: int, config: Any, values: Mapping[str, float], *, failed: bool) -> None: ...
    def result(self, values: Mapping[str, float], texts: Mapping[str, str]) -> None: ...
    def close(self, *, failed: bool) -> None:
        self.closed_as_failed = failed


def test_a_tracker_that_fails_ends_no_run() -> None:
    notes: list[str] = []
    broken = Broken()
    trackers = Trackers({"broken": broken}, notes.append)
    for row in EPOCHS:
        trackers.stage("train", {"epoch_done": row})
    assert notes == ["tracking by broken has ended: ConnectionError: away"]
    assert broken.closed_as_failed


def test_a_run_that_stops_is_not_shown_as_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trackers = start_tracking(Experiment.model_validate({"name": "told", "tracking": ["mlflow"]}), tmp_path, print)
    trackers.stage("sweep/qat", {"state": "done", "results": {"trials": [TRIALS[0]], "failed": [
        {"number": 1, "config": {"lr": 9.0}, "error": "diverged"}]}})  # fmt: skip
    trackers.ended(RuntimeError, RuntimeError("a stage failed"), None)
    client = mlflow.MlflowClient(tracking_uri=store_of_mlflow(tmp_path))
    (experiment,) = [one for one in client.search_experiments() if one.name == "told"]
    states = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
    assert states == {tmp_path.name: "FAILED", "qat-1": "FINISHED", "qat-2": "FAILED"}


def test_a_library_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(Exception, match="the library wandb cannot be used") as raised:
        refuse_missing(["tensorboard", "wandb"])
    assert "uv sync --extra wandb" in raised.value.hint  # type: ignore[attr-defined]
