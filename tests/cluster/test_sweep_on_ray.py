"""A sweep through Ray Tune: its table, its continuation after a kill, its extension, a trial that is broken."""

import json
import os
import signal
import traceback
from pathlib import Path

import pandas as pd
import pytest
import ray
from ray import tune
from workplace import Workplace, make_workplace, own_stage_processes

import raq
from raq.cluster.driver import Driver
from raq.cluster.nodes import Node
from raq.cluster.ray_tune import tune_all
from raq.cluster.ray_tune_qat import tune_search
from raq.cluster.resources import demand_of
from raq.cluster.session import cluster
from raq.errors import StageError, UserError, last_message
from raq.experiment.schema import Experiment
from raq.experiment.training import Qat
from raq.plan.prepare import prepare
from raq.stages.call import Call
from raq.store.files import short_digest, write_json
from raq.store.local import Store, sealed
from raq.store.settings import QatSearch
from raq.sweep.qat import Search

pytestmark = pytest.mark.cluster
SWEEP = """
sweep: {ptq: {calibration.size: [16, 128], calibration.observer: [minmax], seed: [0, 1]}}
"""


class Sweeper:
    """The tiny experiment as far as its sweep, on one cluster."""

    def __init__(self, place: Workplace, nodes: list[Node]) -> None:
        self.place, self.nodes = place, nodes
        self.store = Store(place.folder / "results")
        self.kill_after_a_trial = False

    def run(self, *overrides: str) -> dict:
        """Train and sweep; the sweep's results with its folder."""
        prepared = prepare(self.place.experiment, list(overrides))
        plan = [stage for stage in prepared.plan if stage.name in ("train", "sweep/ptq", "sweep/qat")]
        stale = {s.name: "test" for s in plan if self.store.find(s.kind, s.fingerprint) is None}
        folder = self.store.new_run("x")
        (folder / "logs").mkdir()
        where = str(self.place.folder)
        Driver(prepared.experiment, plan, self.store, folder, self.nodes, self._listen, where).run(stale)
        sweep = plan[-1]
        record = self.store.find(sweep.kind, sweep.fingerprint)
        assert record is not None
        return {"folder": self.store.stage_folder(sweep.kind, sweep.fingerprint), **record["results"], "record": record}

    def trials(self) -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in self.place.folder.glob("results/trials/*/*.json")}

    def _listen(self, stage: str, event: dict) -> None:
        if self.kill_after_a_trial and str(event.get("text", "")).startswith("trial 1 "):
            self.kill_after_a_trial = False
            for process in own_stage_processes():
                os.kill(process, signal.SIGKILL)


@pytest.fixture(scope="module")
def sweeper(tmp_path_factory: pytest.TempPathFactory, own_cache: Path):
    place = make_workplace(tmp_path_factory.mktemp("swept"), own_cache)
    place.experiment.write_text(place.experiment.read_text() + SWEEP)
    before = Path.cwd()
    os.chdir(place.folder)
    try:
        with cluster(None, tmp_path_factory.mktemp("logs")) as nodes:
            yield Sweeper(place, nodes)
    finally:
        os.chdir(before)


@pytest.mark.slow
def test_a_sweep_whose_actor_is_killed_ends_with_the_same_table(sweeper: Sweeper) -> None:
    """Killed after its first trial, it goes on; nothing is done twice, and Tune can read what Tune wrote."""
    sweeper.kill_after_a_trial = True
    found = sweeper.run()
    assert found["record"]["attempts"] == 2
    assert [(t["config"]["calibration.size"], t["config"]["seed"]) for t in found["trials"]] == [
        (128, 0), (128, 1), (16, 0), (16, 1),
    ]  # fmt: skip
    assert found["failed"] == []
    # each seed's largest size, and the 16 images of the first batch of 32 in which the smaller one ends; but for what
    # a pass that was killed had not reached
    assert 2 * (128 + 16) <= found["calibration_images"] <= 2 * (128 + 16) + 128
    grid = tune.ResultGrid(tune.ExperimentAnalysis(str(found["folder"] / "tune")))
    assert sorted(grid.get_dataframe()["config/calibration.size"]) == [16, 16, 128, 128]
    table = pd.read_parquet(found["folder"] / "trials.parquet")
    assert list(table["config/calibration.size"]) == [128, 128, 16, 16]
    assert list(table["top1"]) == [t["top1"] for t in found["trials"]]


@pytest.mark.slow
def test_an_extended_sweep_does_the_new_trials_alone_and_a_broken_one_ends_no_other(sweeper: Sweeper) -> None:
    found_before = sweeper.run()
    before = sweeper.trials()
    folder = next(sweeper.place.folder.glob("results/trials/*"))
    range_kept = {"reduce_range": found_before["trials"][0]["config"]["reduce_range"]}
    name = short_digest({"calibration.observer": "minmax", "calibration.percentile": None, **range_kept, "seed": 7})
    (folder / f"ranges-{name}").write_text("a file where the trial wants a folder")
    found = sweeper.run("sweep.ptq.seed=[0, 1, 2, 7]")
    after = sweeper.trials()
    assert len(found["trials"]) == 6
    assert len(after) == len(before) + 2
    assert all(after[path] == time_ns for path, time_ns in before.items())
    assert {f["config"]["seed"] for f in found["failed"]} == {7}
    assert pd.read_csv(found["folder"] / "trials.csv")["error"].notna().sum() == 2


class Reported:
    """Keeps what is posted."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, progress: dict) -> None:
        self.texts.append(progress["text"])

    def notice(self, text: str) -> None:
        self.texts.append(text)


QAT = {"lr": 0.001, "epochs": 4, "workers": 1}


def test_a_search_through_tune(sweeper: Sweeper, tmp_path: Path) -> None:
    """As on one place without Tune: the same trials, the same early stops; one that fails ends no other."""

    def trial(config: dict) -> None:
        """A trial that costs nothing."""
        if config["lr"] == 0.3:
            raise ValueError("broken")
        for epoch in range(config["epochs"]):
            tune.report({"epoch": epoch, "validation": 0.9 - abs(config["lr"] - 0.02) - 0.1 / (epoch + 1)})

    sweep = {"space": {"lr": [0.01, 0.02, 0.3, 0.4, 0.5], "epochs": [4]}, "search": "grid", "scheduler": "asha"}
    search = Search(QatSearch(**sweep, trials=None), Qat.model_validate(QAT), 0)
    call = Call(
        name="sweep/qat", kind="qat_sweep", settings={"qat": QAT}, inputs={}, folder=str(tmp_path), cpus=1, workers=2
    )
    reported = Reported()
    tune_search(call, reported, search, tune.with_resources(trial, {"cpu": 1}), 2)
    assert reported.texts[-1] == "trial 6 of 6"
    assert [c["lr"] for c in search.configs] == [0.001, 0.01, 0.02, 0.3, 0.4, 0.5]
    assert search.stops() == [None, None, None, None, 1, 1]
    assert search.failed == {3: "ValueError: broken"}
    assert max(search.scores(), key=lambda score: score or 0) == pytest.approx(0.875)
    grid = tune.ResultGrid(tune.ExperimentAnalysis(str(tmp_path / "tune")))
    assert len(grid) == 6
    assert len(grid.get_dataframe()) == 5, "Tune lists no row for a trial that has reported nothing"


def test_a_trial_whose_process_is_lost_is_done_again(sweeper: Sweeper, tmp_path: Path) -> None:
    """That is no result of the trial's: twice in one pass of Tune, which ends it there, and it is done in the next."""

    def trial(config: dict) -> None:
        """Its process dies twice."""
        died = tmp_path / f"died-{config['number']}"
        count = len(died.read_text()) if died.exists() else 0
        if config["number"] == 1 and count < 2:
            died.write_text("x" * (count + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        tune.report({"top1": 0.5})

    reported = Reported()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "record.json").write_text('{"id": "of some weights"}')
    call = Call(
        name="sweep/ptq", kind="ptq_sweep", settings={"trials": "these"}, inputs={"weights": str(tmp_path / "weights")},
        folder=str(tmp_path / "work"), cpus=1,
    )  # fmt: skip
    failed = tune_all(call, reported, tune.with_parameters(trial), [{"number": n} for n in range(3)], "top1")
    assert failed == {}
    assert any("lost with their process, 1 of them" in text for text in reported.texts)


@pytest.mark.slow
def test_trials_trained_by_two_workers_each_give_their_places_back(sweeper: Sweeper) -> None:
    """Ray Train inside Tune, one trial at a time on two CPUs, most of them ended early."""
    found = sweeper.run(
        "sweep.ptq=null", "sweep.search=grid", "sweep.qat={lr: [1.0e-9, 1.0e-8, 1.0e-7]}", "qat.workers=2"
    )
    assert [trial["config"]["lr"] for trial in found["trials"]] == [0.0005, 1e-9, 1e-8, 1e-7]
    assert {trial["state"] for trial in found["trials"]} <= {"finished", "stopped"}
    assert found["trials"][0]["state"] == "finished"
    assert found["record"]["workers"] == 2
    groups = ray.util.placement_group_table().values()
    assert [group["state"] for group in groups if group["state"] != "REMOVED"] == []
    assert ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def test_trials_share_the_cpus_that_there_are(sweeper: Sweeper) -> None:
    stage = next(s for s in prepare(sweeper.place.experiment, []).plan if s.kind == "ptq_sweep")
    demand = demand_of(stage, [Node(3, 0, True), Node(2, 0, False)])
    assert (demand.cpus, demand.workers, demand.is_coordinator) == (1, 4, True), "four trials, five CPUs"
    assert demand_of(stage, [Node(1, 0, True)]).workers == 1


def test_a_failed_trial_says_what_went_wrong_and_not_its_hint_alone() -> None:
    """As the text of an error in an actor ends: the message, and below it the hint."""
    try:
        raise StageError("the gradient cannot be computed", "do without it")
    except StageError:
        text = f"ray::ImplicitFunc.train()\n{traceback.format_exc()}"
    assert text.strip().endswith("do without it")
    assert last_message(text) == "the gradient cannot be computed"
    assert last_message("Traceback:\nValueError: something else\n") == "ValueError: something else"


def test_a_run_without_a_sweep_has_no_trials(tmp_path: Path) -> None:
    settings = Experiment.model_validate({"name": "x"}).model_dump(mode="json")
    machine = {"cpu": "a cpu", "features": [], "cpus": 1, "gpus": []}
    run: dict = {"settings": settings, "data": {"digest": "d"}, "stages": {}}
    run["environment"] = {"machine": machine, "versions": {}}
    run |= {"id": "x", "experiment": "x", "complete": True, "error": None}
    write_json(tmp_path / "run.json", sealed(run))
    with pytest.raises(UserError, match="no finished sweep"):
        raq.open_run(tmp_path).trials()


def test_what_cannot_be_swept(sweeper: Sweeper) -> None:
    for given, said in (
        ("ptq=null", "sweep.ptq is of the candidate ptq, and ptq is null"),
        ("data.validation_fraction=0.0", "data.validation_fraction is 0, and sweep compares"),
        ("sweep.ptq.calibration.size=[16, 16]", "names a value twice"),
        ("sweep.ptq.calibration.size=[100000]", "sweep.ptq.calibration.size has 100000, and there are"),
        ("sweep.ptq.calibration.sizes=[16]", "unknown key"),
        ("sweep.ptq.calibration.percentile=[99.0]", "is of the percentile observer, which is not tried"),
        ("data.validation_fraction=0.002", "1 validation images, too few to compare"),
    ):
        with pytest.raises(UserError) as raised:
            prepare(sweeper.place.experiment, [given])
        assert said in str(raised.value), json.dumps([given, str(raised.value)])
