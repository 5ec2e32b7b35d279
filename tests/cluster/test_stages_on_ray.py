"""Stages on a real Ray cluster: distributed training, dead processes, demands that cannot be met."""

import os
import signal
import socket
from pathlib import Path

import pytest

from raq.cluster.driver import Demand, Driver, demand_of
from raq.cluster.session import Node, cluster
from raq.errors import UserError
from raq.experiment import Resources
from raq.plan import Stage
from raq.records import Store
from raq.run import Prepared, prepare
from raq.stages import Call, run_stage

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory):
    """One Ray cluster for all tests here."""
    with cluster(None, tmp_path_factory.mktemp("logs")) as found:
        yield found


SETTINGS = ["train.lr=0.02", "train.epochs=4", "train.batch_size=64", "data.validation=0.0"]


def prepared_in(workplace, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Prepared:
    monkeypatch.chdir(workplace.folder)
    return prepare(workplace.experiment, [*SETTINGS, *overrides])


def call_of(stage: Stage, workplace, folder: str, workers: int) -> Call:
    work = str(workplace.folder / folder)
    where = str(workplace.folder)
    return Call(stage.name, stage.kind, stage.settings, {}, work, None, None, where, cpus=1, gpus=0, workers=workers)


def test_two_workers_and_one_have_the_same_loss_curve(nodes, workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from raq.cluster.actors import start_board
    from raq.cluster.training import distributed_stage

    stage = prepared_in(workplace, monkeypatch).plan[0]
    two = distributed_stage(call_of(stage, workplace, "two", workers=2), start_board())
    one = run_stage(call_of(stage, workplace, "one", workers=1), lambda metrics: None)
    assert (workplace.folder / "two" / "weights.pt").is_file()
    assert len(two["history"]) == 4
    for a, b in zip(one["history"], two["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.01)
    assert one["history"][-1]["loss"] < 0.7 * one["history"][0]["loss"]


def stage_process() -> int:
    """The process of the stage actor that is at work."""
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "cmdline").read_bytes().startswith(b"ray::StageActor.run"):
                    return int(process.name)
            except OSError:
                continue
    raise AssertionError("no stage is at work")


def test_a_killed_process_is_replaced_and_goes_on(nodes, workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_in(workplace, monkeypatch, "train.epochs=60")
    store = Store(workplace.folder / "results")
    run_folder = store.new_run("x")
    (run_folder / "logs").mkdir()
    events: list[dict] = []
    epochs: list[int] = []

    def listen(stage: str, event: dict) -> None:
        events.append(event)
        if "epoch_done" in event:
            epochs.append(event["epoch_done"]["epoch"])
            if len(epochs) == 5:
                os.kill(stage_process(), signal.SIGKILL)

    plan = prepared.plan[:1]
    Driver(prepared.experiment, plan, store, run_folder, nodes, listen, str(workplace.folder)).run({"train": "test"})
    assert "retry" in [event.get("state") for event in events]
    record = store.find("train", plan[0].fingerprint)
    assert record is not None
    assert record["attempts"] == 2
    assert [row["epoch"] for row in record["results"]["history"]] == list(range(60))
    assert epochs.count(0) == 1, "finished epochs are not trained again"


@pytest.mark.parametrize(
    ("pool", "resources", "workers", "machines", "expected"),
    [
        ("train", {}, 1, [Node(4, 0, True)], Demand(4, 0, 1)),
        ("train", {}, 2, [Node(4, 0, True)], Demand(2, 0, 2)),
        ("train", {"cpus": 3}, 2, [Node(4, 0, False), Node(4, 0, True)], Demand(3, 0, 2)),
        ("train", {"gpus": 1}, 2, [Node(8, 2, False), Node(64, 0, True)], Demand(4, 1, 2)),
        ("bench", {}, 1, [Node(64, 0, False), Node(8, 0, True)], Demand(8, 0, 1)),
        ("train", {"cpus": 3}, 2, [Node(4, 0, True)], "has room for 1"),
        ("train", {"cpus": 5}, 1, [Node(4, 0, True)], "largest node has 4"),
        ("train", {"gpus": 1}, 3, [Node(8, 2, True)], "has room for 2"),
        ("bench", {}, 1, [Node(8, 0, False)], "the resource 'bench'"),
        ("train", {}, 1, [Node(0, 0, True)], "a CPU"),
    ],
)
def test_demands(pool, resources, workers, machines, expected) -> None:
    stage = Stage(pool, pool, pool, {}, {}, "f", Resources(**resources), workers)
    if isinstance(expected, Demand):
        assert demand_of(stage, machines) == expected
    else:
        with pytest.raises(UserError, match=expected):
            demand_of(stage, machines)


def test_what_listens_and_is_not_ray_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from raq.cluster import session

    monkeypatch.setattr(session, "JOIN_TIMEOUT_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=r"(no Ray cluster|cannot join)"):
            session._refuse_silence(address)
    with pytest.raises(UserError, match="not an address"):
        session._refuse_silence("somewhere")
