"""Sweeps by another metric than top-1, on this machine alone, without Ray: an error, and a metric of the whole set."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from one_machine import Machine, shown
from workplace import Workplace

from raq.errors import UserError
from raq.plan.stages import Stage
from raq.report.sweep import print_layers, print_search, print_sweep
from raq.stages.call import trials_folder

MODULE = """
import numpy as np
import torch
from torch import nn
import raq


def model(num_classes=None):
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))


def rows(count, seed):
    given = np.random.default_rng(seed).normal(size=(count, 6)).astype(np.float32)
    return given, (given[:, :1] - given[:, 1:2] * given[:, 2:3]).astype(np.float32)


def data():
    return raq.Data(train=raq.Arrays(*rows(300, 0)), test=raq.Arrays(*rows(80, 1)))


def rank(outputs, targets):
    return float(np.corrcoef(np.argsort(np.argsort(outputs[:, 0])), np.argsort(np.argsort(targets[:, 0])))[0, 1])
"""
EXPERIMENT = """
name: rows
data: {name: "rows_user:data", validation_fraction: 0.3}
model: {name: "rows_user:model"}
metric: METRIC
loss: mse
train: {epochs: 6, batch_size: 32, optimizer: adamw, lr: 0.01}
ptq: {calibration: {size: 64}}
qat: {epochs: 3, batch_size: 32, optimizer: adamw, lr: 0.001}
require: {max_drop: 0.05, sqnr_db: 0}
sweep:
  ptq: {calibration.size: [8, 64], seed: [0, 1]}
  qat: {lr: [0.000001, 0.01]}
  search: grid
  scheduler: none
  layers: {candidates: 2}
bench: {batch_sizes: [1]}
"""
RANK = "{function: 'rows_user:rank', per: set}"


class PlannedOnce(Machine):
    """Whose plans are made once: each imports the user's module in a process of its own."""

    def __init__(self, place: Workplace) -> None:
        super().__init__(place)
        self.known: dict[tuple[str, ...], dict[str, Stage]] = {}

    def plan(self, *overrides: str) -> dict[str, Stage]:
        if overrides not in self.known:
            self.known[overrides] = super().plan(*overrides)
        return self.known[overrides]


def workplace(folder: Path, cache: Path, metric: str) -> Workplace:
    (folder / "rows_user.py").write_text(MODULE)
    (folder / "tiny.yaml").write_text(EXPERIMENT.replace("METRIC", metric))
    return Workplace(folder, cache)


@pytest.fixture(
    scope="module",
    params=["mse", pytest.param(RANK, marks=pytest.mark.slow)],
    ids=["an error of each sample", "a function of the whole set"],
)
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, own_cache: Path):
    place = workplace(tmp_path_factory.mktemp("rows"), own_cache, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder)
        patch.syspath_prepend(place.folder)
        patch.delitem(__import__("sys").modules, "rows_user", raising=False)
        found = PlannedOnce(place)
        found.do("train")
        yield found


def is_error(machine: Machine) -> bool:
    return machine.plan()["sweep/ptq"].settings["metric"]["function"] == "mse"


def test_calibrations(machine: Machine) -> None:
    """Every value is the metric's own, drops are in its unit with the right sign; the table has a column of values."""
    found = machine.do("sweep/ptq")
    sign = -1 if is_error(machine) else 1
    assert found["metric"]["greater_is_better"] is not is_error(machine)
    assert "baseline_top1" not in found
    for row in found["curve"]:
        values = [t["value"] for t in found["trials"] if t["config"]["calibration.size"] == row["size"]]
        assert row["mean_value"] == pytest.approx(np.mean(values))
        assert row["drop"] == pytest.approx(sign * (found["baseline_value"] - np.mean(values)))
    folder = machine.folder(machine.plan()["sweep/ptq"])
    assert list(pd.read_csv(folder / "trials.csv")["value"]) == [trial["value"] for trial in found["trials"]]
    baseline = np.load(trials_folder(machine.call(machine.plan(), "sweep/ptq")) / "baseline.npy")
    if is_error(machine):
        assert baseline.mean() == pytest.approx(found["baseline_value"])
        assert (baseline > 0).all()
    else:
        assert baseline[0] == found["baseline_value"]
        assert len(baseline) == 1001
    text = shown(print_sweep, found, 110)
    assert ("mse" if is_error(machine) else "rank") in text
    assert "top-1" not in text


def test_trainings(machine: Machine) -> None:
    """The best is that with the least error, or the highest rank correlation; the first is the training as written."""
    found = machine.do("sweep/qat")
    best = min if is_error(machine) else max
    values = {trial["number"]: trial["value"] for trial in found["trials"]}
    assert found["choice"]["number"] == best(values, key=lambda number: values[number])
    for trial in found["trials"]:
        assert trial["value"] == best(trial["curve"])
        assert trial["value_interval"][0] <= trial["value"] <= trial["value_interval"][1]
    front = [trial["number"] for trial in found["trials"] if trial["front"]]
    assert found["choice"]["number"] in front
    text = shown(print_search, found, 110)
    assert "top-1" not in text


def test_layers(machine: Machine) -> None:
    """All in int8 is worse than FP32 by what the record says; each drop has the sign of the metric."""
    found = machine.do("sweep/layers")
    sign = -1 if is_error(machine) else 1
    everything = found["all_quantized"]
    assert everything["drop"] == pytest.approx(sign * (found["baseline_value"] - everything["value"]))
    low, high = everything["drop_interval"]
    assert low <= everything["drop"] <= high
    for trial in found["trials"]:
        assert trial["drop"] == pytest.approx(sign * (found["baseline_value"] - trial["value"]))
    assert machine.plan()["sweep/layers"].settings["max_drop"] == 0.025, "half of require.max_drop"
    text = shown(print_layers, found, 110)
    assert "top-1" not in text
    assert "points" not in text


def test_data_without_a_split_to_hold_samples_out_of(machine: Machine) -> None:
    with pytest.raises(UserError, match="too few to compare"):
        machine.plan("data.train_limit=20", "ptq.calibration.size=8", "sweep.ptq=null")
