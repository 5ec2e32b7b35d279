"""Stages on a real Ray cluster: distributed training, dead processes, demands that cannot be met."""

import os
import signal
import socket

import pytest
import ray
from workplace import own_stage_processes

from raq.cluster.driver import Driver
from raq.cluster.events import EventSender, start_event_queue
from raq.cluster.ray_train import distributed_stage
from raq.cluster.session import cluster
from raq.errors import StageError, UserError
from raq.plan.prepare import Prepared, prepare
from raq.plan.stages import Stage
from raq.stages.call import Call
from raq.stages.dispatch import run_stage
from raq.store.local import Store

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory):
    """One Ray cluster for all tests here."""
    with cluster(None, tmp_path_factory.mktemp("logs")) as found:
        yield found


SETTINGS = ["train.lr=0.02", "train.epochs=4", "train.batch_size=64", "data.validation_fraction=0.0"]


def prepared_in(workplace, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Prepared:
    monkeypatch.chdir(workplace.folder)
    return prepare(workplace.experiment, [*SETTINGS, *overrides])


def call_of(stage: Stage, workplace, folder: str, workers: int) -> Call:
    work = str(workplace.folder / folder)
    where = str(workplace.folder)
    return Call(
        name=stage.name,
        kind=stage.kind,
        settings=stage.settings,
        inputs={},
        folder=work,
        working_directory=where,
        cpus=1,
        workers=workers,
    )


def stage_process() -> int:
    """The process of the stage actor that is at work."""
    (process,) = own_stage_processes()
    return process


def driven(prepared: Prepared, nodes, workplace, kill_after_epoch: int) -> tuple[dict, list[dict]]:
    """The record of the first stage, done by a driver, its actor killed once; and all events."""
    store = Store(workplace.folder / "results")
    run_folder = store.new_run("x")
    (run_folder / "logs").mkdir()
    events: list[dict] = []

    def listen(stage: str, event: dict) -> None:
        events.append(event)
        if len(epochs_done(events)) == kill_after_epoch and "epoch_done" in event:
            os.kill(stage_process(), signal.SIGKILL)

    stage = prepared.plan[0]
    Driver(prepared.experiment, [stage], store, run_folder, nodes, listen, str(workplace.folder)).run({"train": "test"})
    record = store.find("train", stage.fingerprint)
    assert record is not None
    return record, events


def epochs_done(events: list[dict]) -> list[int]:
    return [event["epoch_done"]["epoch"] for event in events if "epoch_done" in event]


def test_two_workers_come_to_the_losses_of_one(nodes, workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers in Ray Train against one bare process."""
    prepared = prepared_in(workplace, monkeypatch, "train.workers=2")
    found = distributed_stage(
        call_of(prepared.plan[0], workplace, "together", workers=2), EventSender(start_event_queue(), "train")
    )["history"]
    bare = run_stage(call_of(prepared.plan[0], workplace, "bare", workers=1), lambda metrics: None)["history"]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in bare], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "epochs"), [(1, 60), (2, 4)])
def test_a_killed_process_is_replaced_and_goes_on_with_the_same_losses(
    nodes, workplace, monkeypatch: pytest.MonkeyPatch, workers: int, epochs: int
) -> None:
    """One worker in an actor, or two in Ray Train, interrupted; against one bare process, not interrupted."""
    prepared = prepared_in(workplace, monkeypatch, f"train.epochs={epochs}", f"train.workers={workers}")
    record, events = driven(prepared, nodes, workplace, kill_after_epoch=2)
    assert "retry" in [event.get("state") for event in events]
    assert (record["attempts"], record["workers"]) == (2, workers)
    # Ray Train stores a report a moment after its worker has made it, so that the last one may be lost
    assert epochs_done(events).count(0) == 1, "finished epochs are not trained again"
    history = record["results"]["history"]
    assert [row["epoch"] for row in history] == list(range(epochs))
    bare = run_stage(call_of(prepared.plan[0], workplace, "bare", workers=1), lambda metrics: None)["history"]
    for a, b in zip(bare[:4], history[:4], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.01)
    assert history[3]["loss"] < 0.7 * history[0]["loss"]


@pytest.mark.slow
def test_a_stage_that_hangs_is_ended_and_tried_again(nodes, workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_in(workplace, monkeypatch, "model.name=tiny_user:hangs_once", "resources.train.timeout_s=40")
    record, events = driven(prepared, nodes, workplace, kill_after_epoch=-1)
    assert record["attempts"] == 2
    assert "it did not end in time (40 s), attempt 2" in [event.get("text") for event in events]
    assert own_stage_processes() == []


@pytest.mark.slow
def test_an_error_of_ours_in_a_worker_is_not_tried_again(nodes, workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = prepared_in(workplace, monkeypatch, "train.lr=100").plan[0]
    queue = start_event_queue()
    with pytest.raises(StageError, match=r"(epoch 1 is (nan|inf)|after epoch 1, .* is not finite)"):
        distributed_stage(call_of(stage, workplace, "diverged", workers=2), EventSender(queue, "train"))
    events = ray.get(queue.drain.remote(5.0), timeout=20)
    assert len([e for e in events if "share" in e.get("progress", {})]) == 1, "the first step, once"


def test_what_listens_and_is_not_ray_is_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from raq.cluster import session

    monkeypatch.setattr(session, "JOIN_TIMEOUT_S", 5.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=r"(no Ray cluster|cannot join)"):
            session._refuse_silence(address)
    with pytest.raises(UserError, match="not an address"):
        session._refuse_silence("somewhere")
