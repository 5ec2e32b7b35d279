"""A sweep through Ray Tune: its table, its continuation after a kill, its extension, a trial that is broken."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
from workplace import Workplace, make_workplace

import raq
from raq.errors import UserError

pytestmark = pytest.mark.cluster
SWEEP = """
sweep: {ptq: {calibration.size: [16, 128], calibration.observer: [minmax], seed: [0, 1]}}
"""


def sweep_record(place: Workplace) -> dict:
    newest = sorted((place.folder / "results" / "runs").iterdir())[-1]
    stage = json.loads((newest / "run.json").read_text())["stages"]["sweep/ptq"]
    folder = place.folder / "results" / "stages" / f"sweep-{stage['fingerprint'][:16]}"
    return {"folder": folder, "run": newest, **json.loads((folder / "record.json").read_text())["results"]}


def tables(place: Workplace) -> pd.DataFrame:
    return pd.read_csv(sweep_record(place)["folder"] / "trials.csv")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, own_cache: Path) -> Workplace:
    """The tiny experiment with a sweep, killed while its trials run, then finished."""
    place = make_workplace(tmp_path_factory.mktemp("swept"), own_cache)
    text = place.experiment.read_text().replace("qat: {epochs: 2, augment: false, batch_size: 32}", "qat: null")
    place.experiment.write_text(text.replace("rounds: 6", "rounds: 1") + SWEEP)
    first = subprocess.Popen(
        place.command("run", "tiny.yaml"), cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(place.folder.glob("results/trials/*/*.npy")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    done = place.raq("run", "tiny.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chosen: minmax" in done.stdout
    return place


def test_the_table_and_the_candidate_that_was_chosen(swept: Workplace) -> None:
    found = sweep_record(swept)
    assert [(t["config"]["calibration.size"], t["config"]["seed"]) for t in found["trials"]] == [
        (128, 0), (128, 1), (16, 0), (16, 1),
    ]  # fmt: skip
    assert found["failed"] == []
    assert found["calibration_images"] <= 2 * 2 * 128, "each seed read the largest size once, or twice if killed in it"
    run = raq.open_run(found["run"])
    assert list(run.trials()["config/calibration.size"]) == [128, 128, 16, 16]
    chosen = run.summary["candidates"][1]["config"]["calibration"]
    assert chosen["size"] == found["choice"]["config"]["calibration.size"]
    from ray import tune

    grid = tune.ResultGrid(tune.ExperimentAnalysis(str(found["folder"] / "tune")))
    assert sorted(grid.get_dataframe()["config/calibration.size"]) == [16, 16, 128, 128]


def test_an_extended_sweep_does_the_new_trials_alone(swept: Workplace) -> None:
    before = {path: path.stat().st_mtime_ns for path in swept.folder.glob("results/trials/*/*.json")}
    done = swept.raq("run", "tiny.yaml", "--set", "sweep.ptq.seed=[0, 1, 2]")
    assert done.returncode == 0, done.stdout + done.stderr
    after = {path: path.stat().st_mtime_ns for path in swept.folder.glob("results/trials/*/*.json")}
    assert len(after) == len(before) + 2
    assert all(after[path] == time_ns for path, time_ns in before.items())
    assert len(tables(swept)) == 6


def test_a_broken_trial_does_not_end_the_others(swept: Workplace) -> None:
    folder = next(swept.folder.glob("results/trials/*"))
    text = json.dumps({"calibration.observer": "minmax", "calibration.percentile": None, "seed": 7}, sort_keys=True)
    from raq.sweeps import config_digest

    blocked = folder / f"ranges-{config_digest(json.loads(text))}"
    blocked.write_text("a file where the trial wants a folder")
    done = swept.raq("run", "tiny.yaml", "--set", "sweep.ptq.seed=[0, 7]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED: calibration.size 128, calibration.observer minmax, seed 7" in done.stdout
    found = sweep_record(swept)
    assert len(found["trials"]) == 2
    assert len(found["failed"]) == 2
    assert tables(swept)["error"].notna().sum() == 2


def test_a_run_without_a_sweep_has_no_trials(finished: Workplace) -> None:
    newest = sorted((finished.folder / "results" / "runs").iterdir())[-1]
    with pytest.raises(UserError, match="no finished sweep"):
        raq.open_run(newest).trials()
