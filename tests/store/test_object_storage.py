"""Results at an address: a real S3-compatible server, whose line is cut and mended."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import CREDENTIALS, Line, s3_server

import raq.store.lease
import raq.store.object_storage
from raq.errors import RaqError, UserError
from raq.experiment.schema import Experiment
from raq.store.local import Store
from raq.store.node_copy import NodeCopy, work_name
from raq.store.object_storage import Storage, StorageError, subscribed
from raq.store.opening import open_store, store_of
from raq.store.remote import RemoteStore

FINGERPRINT = "f" * 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Line]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def store(server: tuple[str, Line], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteStore:
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path / "cache"))
    address, _, options = server[0].partition("?")
    found = open_store(f"{address}/{tmp_path.name}?{options}")
    assert isinstance(found, RemoteStore)
    return found


def elsewhere(store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RemoteStore:
    """The same store, as another machine sees it."""
    monkeypatch.setenv("RAQ_CACHE", str(tmp_path / "other"))
    found = open_store(store.address)
    assert isinstance(found, RemoteStore)
    assert found.root != store.root
    return found


def leave(store: RemoteStore, execution: str, content: bytes) -> None:
    """What an actor does: files in the work folder, sent."""
    work = store.work_folder("train", FINGERPRINT)
    (work / "checkpoint").mkdir(parents=True)
    (work / "weights.pt").write_bytes(content)
    (work / "checkpoint" / "training.pt").write_bytes(b"not sent")
    assert NodeCopy(store).send_stage(work, execution) == {"weights.pt": len(content)}


def record(execution: str, size: int = 7) -> dict[str, object]:
    files = {"weights.pt": size}
    return {"id": execution, "kind": "train", "fingerprint": FINGERPRINT, "results": {"top1": 0.5}, "files": files}


def test_a_stage_is_there_with_its_record(store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave(store, "one", b"weights")
    assert store.find("train", FINGERPRINT) is None
    store.publish("train", FINGERPRINT, record("one"))
    other = elsewhere(store, tmp_path, monkeypatch)
    found = other.find("train", FINGERPRINT)
    assert found is not None
    assert found["files"] == {"weights.pt": 7}
    folder = other.fetch_stage(other.stage_folder("train", FINGERPRINT).name)
    assert (folder / "weights.pt").read_bytes() == b"weights"
    assert other.place(found, "weights.pt").startswith("s3://results/raq/")
    assert "endpoint" not in other.place(found, "weights.pt")


def test_an_execution_that_was_given_up_harms_none(store: RemoteStore) -> None:
    leave(store, "one", b"weights")
    store.publish("train", FINGERPRINT, record("one"))
    leave(store, "late", b"other weights")  # it comes after another has been published
    found = store.find("train", FINGERPRINT)
    assert found is not None
    assert store.file(found, "weights.pt").read_bytes() == b"weights"


def test_what_is_made_anew_takes_the_place_of_the_copy(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(store, tmp_path, monkeypatch)
    for execution, content in (("one", b"weights"), ("two", b"WEIGHTS")):
        leave(store, execution, content)
        store.publish("train", FINGERPRINT, record(execution))
        folder = other.fetch_stage(other.stage_folder("train", FINGERPRINT).name)
        assert (folder / "weights.pt").read_bytes() == content
    assert store.storage.names(f"stages/{folder.name}") == ["record.json", "two"]


def test_a_damaged_file_makes_it_stale(store: RemoteStore) -> None:
    leave(store, "one", b"weights")
    store.publish("train", FINGERPRINT, record("one"))
    store.storage.write(f"stages/{store.stage_folder('train', FINGERPRINT).name}/one/weights.pt", b"weight")
    assert store.find("train", FINGERPRINT) is None


def test_a_file_changed_there_is_noticed_before_it_is_used(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size, so that only its SHA-256 tells."""
    leave(store, "one", b"weights")
    digests = {"weights.pt": hashlib.sha256(b"weights").hexdigest()}
    store.publish("train", FINGERPRINT, {**record("one"), "digests": digests})
    name = store.stage_folder("train", FINGERPRINT).name
    other = elsewhere(store, tmp_path, monkeypatch)
    found = other.find("train", FINGERPRINT)
    assert found is not None
    assert other.file(found, "weights.pt").read_bytes() == b"weights"
    (other.root / "stages" / name / "weights.pt").write_bytes(b"changed")
    assert other.file(found, "weights.pt").read_bytes() == b"weights", "the copy here is fetched anew"
    (other.root / "stages" / name / "weights.pt").unlink()
    store.storage.write(f"stages/{name}/one/weights.pt", b"HOSTILE")
    for read in (lambda: other.file(found, "weights.pt"), lambda: other.fetch_stage(name)):
        with pytest.raises(RaqError, match=r"weights\.pt is not as it was written"):
            read()
    sent = json.loads(store.storage.read(f"stages/{name}/record.json") or b"")
    sent["results"]["top1"] = 0.9
    store.storage.write(f"stages/{name}/record.json", json.dumps(sent).encode())
    assert store.find("train", FINGERPRINT) is None
    with pytest.raises(RaqError, match="not as it was written"):
        other.fetch_stage(name)


def test_what_did_not_arrive_whole_is_not_published(store: RemoteStore) -> None:
    leave(store, "one", b"weights")
    with pytest.raises(StorageError, match="not there as they were sent"):
        store.publish("train", FINGERPRINT, record("one", size=8))
    assert store.find("train", FINGERPRINT) is None


def test_checkpoints_reach_the_next_node(store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one; what a node has of an attempt that was given up is not taken for one."""
    own, work = tmp_path / "own", "work/train-f"
    own.mkdir()
    for epoch in (1, 2, 3):
        (own / "training.pt").write_bytes(f"epoch {epoch}".encode())
        NodeCopy(store).send_checkpoint(Path("/x") / work, own)
    other, there = elsewhere(store, tmp_path, monkeypatch), tmp_path / "there"
    NodeCopy(other).fetch_checkpoint(Path("/x") / work, there)
    assert (there / "training.pt").read_bytes() == b"epoch 3"
    assert len(store.storage.names(work)) == 2, "one checkpoint, and what names it"
    store.storage.delete_folder(work)
    NodeCopy(other).fetch_checkpoint(Path("/x") / work, there)
    assert not there.exists()


def test_a_checkpoint_that_was_cut_off_leaves_the_last_one(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow closes, and so completes, a file whose writing is interrupted: it must not stand for the good one."""
    own, work = tmp_path / "own", "work/train-f"
    own.mkdir()
    (own / "training.pt").write_bytes(b"epoch 1")
    NodeCopy(store).send_checkpoint(Path("/x") / work, own)

    def interrupted(source: object, sink: Any, length: int) -> None:
        sink.write(b"epo")
        raise SystemExit

    (own / "training.pt").write_bytes(b"epoch 2")
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("raq.store.object_storage.shutil.copyfileobj", interrupted)
        NodeCopy(store).send_checkpoint(Path("/x") / work, own)
    NodeCopy(store).fetch_checkpoint(Path("/x") / work, tmp_path / "there")
    assert (tmp_path / "there" / "training.pt").read_bytes() == b"epoch 1"


def test_a_checkpoint_that_is_named_and_gone_is_none(
    store: RemoteStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own, work = tmp_path / "own", "work/train-f"
    own.mkdir()
    (own / "training.pt").write_bytes(b"epoch 1")
    NodeCopy(store).send_checkpoint(Path("/x") / work, own)
    (sent,) = [name for name in store.storage.names(work) if name != "checkpoint.json"]
    store.storage.delete_folder(f"{work}/{sent}")
    NodeCopy(store).fetch_checkpoint(Path("/x") / work, tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert "beginning anew" in capfd.readouterr().err


def test_trials_are_shared_when_they_have_ended(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(store, tmp_path, monkeypatch)
    trials = store.root / "trials" / "t"
    for name in ("a.json", ".scratch-a.json", "ranges-1/16.npz", "running/training.pt", "running/new/training.pt"):
        (trials / name).parent.mkdir(parents=True, exist_ok=True)
        (trials / name).write_text(name)
    NodeCopy(store).send_trials("t")
    NodeCopy(other).fetch_trials("t")
    there = other.root / "trials/t"
    found = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert found == {"a.json", "ranges-1/16.npz"}


def test_a_trial_that_was_cut_off_while_it_was_sent_is_sent_again(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(store, tmp_path, monkeypatch)
    trials, there = store.root / "trials/t", other.root / "trials/t"
    trials.mkdir(parents=True)
    (trials / "network.pt2").write_bytes(b"whole")
    store.storage.write("trials/t/network.pt2", b"who")  # what pyarrow leaves of an upload that is interrupted
    NodeCopy(other).fetch_trials("t")
    assert not (there / "network.pt2").exists()
    NodeCopy(store).fetch_trials("t")
    assert (trials / "network.pt2").read_bytes() == b"whole"
    NodeCopy(store).send_trials("t")
    NodeCopy(other).fetch_trials("t")
    assert (there / "network.pt2").read_bytes() == b"whole"


def test_of_files_that_grow_the_longer_one_stays(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = elsewhere(store, tmp_path, monkeypatch)
    trials, there = store.root / "trials/t", other.root / "trials/t"
    trials.mkdir(parents=True)
    for content in ("1", "1 1"):
        (trials / "images-a").write_text(content)
        NodeCopy(store).send_trials("t")
        if content == "1":
            NodeCopy(other).fetch_trials("t")
    NodeCopy(other).send_trials("t")  # its shorter copy
    (trials / "images-a").write_text("1 1 1")
    NodeCopy(store).fetch_trials("t")
    NodeCopy(other).fetch_trials("t")
    assert (trials / "images-a").read_text() == "1 1 1"
    assert (there / "images-a").read_text() == "1 1"


def test_trainings_of_other_weights_have_other_names() -> None:
    names = {work_name(Path(f"/x/{folder}")) for folder in ("work/qat-1", "trials/one/d", "trials/two/d")}
    assert names == {"work/qat-1", "work/one/d", "work/two/d"}


def test_runs_are_found_from_another_machine(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Experiment.model_validate({"name": "x"}).model_dump(mode="json")
    machine = {"cpu": "a cpu", "features": [], "cpus": 1, "gpus": []}
    run = {"id": "x", "experiment": "x", "settings": settings, "data": {"digest": "d"}, "stages": {}}
    run["environment"] = {"machine": machine, "versions": {}}
    folder = store.new_run("tiny")
    store.write_run(folder, {**run, "complete": False, "error": "unfinished"})
    other = elsewhere(store, tmp_path, monkeypatch)
    assert not other.find_run("latest").joinpath("run.json").read_text().count('"complete": true')
    store.write_run(folder, {**run, "complete": True, "error": None})
    found = other.find_run("latest")
    options = store.address.partition("?")[2]
    assert raq.open_run(f"{store.address.partition('?')[0]}/runs/{folder.name}?{options}").folder == found
    assert found.joinpath("run.json").read_text().count('"complete": true') == 1
    assert store_of(found).address == store.address
    assert store_of(tmp_path / "runs" / "x") == Store(tmp_path)


def test_a_line_that_is_mended_costs_a_moment(store: RemoteStore, server: tuple[str, Line]) -> None:
    line = server[1]
    line.cut()
    threading.Timer(3.0, line.mend).start()
    store.storage.write("late", b"there")
    assert store.storage.read("late") == b"there"


def test_a_line_that_is_silent_is_told(
    store: RemoteStore, server: tuple[str, Line], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing breaks and nothing comes: only a time-out of its own ends a request."""
    monkeypatch.setattr(raq.store.object_storage, "REQUEST_TIMEOUT_S", 1.0)
    line = server[1]
    store.storage.write("x", b"there")
    line.hold()
    threading.Timer(4.0, line.mend).start()
    heard: list[str] = []
    with subscribed(heard.append):
        assert store.storage.read("x") == b"there"
    assert "does not answer, trying again" in heard[0]
    assert heard[0] in capfd.readouterr().err


def test_what_fails_after_a_long_transfer_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raq.store.object_storage, "ANSWER_TIMEOUT_S", 0.1)
    monkeypatch.setattr(raq.store.object_storage, "WAITS_S", (0.0,))
    answers = iter([OSError("reset"), "there"])

    def transfer() -> str:
        time.sleep(0.2)
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert Storage("s3://bucket/folder").tried(transfer) == "there"


def test_an_endpoint_of_the_environment_is_kept(server: tuple[str, Line], monkeypatch: pytest.MonkeyPatch) -> None:
    """As S3-compatible stores are named for all tools at once."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server[1].port}")
    storage = Storage("s3://results/by-environment?region=us-east-1")
    storage.write("x", b"there")
    assert storage.read("x") == b"there"
    assert Storage(server[0].replace("/raq?", "/by-environment?")).read("x") == b"there"


def test_a_line_that_stays_cut_is_one_error(
    store: RemoteStore, server: tuple[str, Line], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(raq.store.object_storage, "ANSWER_TIMEOUT_S", 1.0)
    line = server[1]
    line.cut()
    try:
        with pytest.raises(StorageError, match="has not answered for 1 s") as error:
            store.storage.read("x")
    finally:
        line.mend()
    said = capfd.readouterr().err + str(error.value)
    assert not any(secret in said for secret in CREDENTIALS.values())


def test_one_writer_at_a_time(
    store: RemoteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(raq.store.lease, "LEASE_S", 1.0)
    monkeypatch.setattr(raq.store.lease, "RENEW_S", 0.2)
    monkeypatch.setattr(raq.store.lease, "SETTLE_S", 0.1)
    other = elsewhere(store, tmp_path, monkeypatch)
    with store.locked(), pytest.raises(UserError, match="another raq run is writing here"), other.locked():
        pass
    store.storage.write(".lock", b"one that was killed")
    with other.locked():
        assert store.storage.read(".lock") != b"one that was killed"
    assert store.storage.read(".lock") is None
    assert "watching" in capfd.readouterr().err


def test_of_two_that_start_together_one_stays(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_starts(seconds: float) -> None:
        store.storage.write(".lock", b"other 0")

    monkeypatch.setattr("raq.store.object_storage.time.sleep", other_starts)
    with pytest.raises(UserError, match="another raq run is writing here"), store.locked():
        pass
    assert store.storage.read(".lock") == b"other 0"


def test_a_run_whose_lock_was_taken_publishes_nothing_more(store: RemoteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raq.store.lease, "RENEW_S", 0.1)
    monkeypatch.setattr(raq.store.lease, "SETTLE_S", 0.1)
    leave(store, "one", b"weights")
    with pytest.raises(StorageError, match="another raq run has taken over"), store.locked():
        store.storage.write(".lock", b"other 0")
        assert store.lease.lost.wait(10)
        store.publish("train", FINGERPRINT, record("one"))
    assert store.find("train", FINGERPRINT) is None
    assert store.storage.read(".lock") == b"other 0"


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("s3://key:secret@bucket/folder", "credentials do not belong in an address"),
        ("s3://KEY:with/secret@bucket/folder", "credentials do not belong in an address"),
        ("s3://bucket/folder?endpoint_override=key:secret@host", "credentials do not belong in an address"),
        ("s3://bucket/folder?endpoint_override=key:secret%40host", "credentials do not belong in an address"),
        ("s3://[bucket/folder", "not an address"),
        ("s3://bucket/folder?secret_key=x", "unknown option 'secret_key'"),
        ("s3://bucket", "not the address of a folder"),
        ("nothing://bucket/folder", "Unrecognized filesystem type"),
    ],
)
def test_addresses_that_are_refused(address: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as error:
        Storage(address).read("x")
    assert "secret@" not in error.value.message


def test_a_bucket_that_is_not_there_is_not_waited_for(server: tuple[str, Line]) -> None:
    options = server[0].partition("?")[2]
    with pytest.raises(StorageError, match="refuses"):
        Storage(f"s3://nobody-has-this/folder?{options}").write("x", b"")


def test_a_folder_is_a_folder(tmp_path: Path) -> None:
    assert open_store(str(tmp_path)) == Store(tmp_path)
    assert open_store(os.path.relpath(tmp_path)) == Store(tmp_path)
