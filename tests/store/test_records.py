"""The store: whole or not at all, one writer, nothing lost."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from kept_records import REFERENCE

from raq.errors import UserError
from raq.store.files import read_json, write_json
from raq.store.local import Store, read_run, refuse_changed, sealed
from raq.store.schema import _check_rounds

FINGERPRINT = "a" * 64


def test_publish_and_find(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.find("train", FINGERPRINT) is None
    for content in ("one", "two"):  # the second is --fresh
        work = store.work_folder("train", FINGERPRINT)
        work.mkdir(parents=True)
        (work / "weights.pt").write_text(content)
        (work / "checkpoint").mkdir()
        (work / "checkpoint" / "training.pt").write_text("not needed any more")
        final = store.publish("train", FINGERPRINT, {"fingerprint": FINGERPRINT, "results": {}})
        assert (final / "weights.pt").read_text() == content
        assert not work.exists()
        assert sorted(f.name for f in final.iterdir()) == ["record.json", "weights.pt"]
        assert read_json(final / "record.json")["files"] == {"weights.pt": len(content)}
    assert store.find("train", FINGERPRINT) is not None
    assert store.find("train", "a" * 16 + "b" * 48) is None, "the whole fingerprint counts, not its beginning"
    assert [f.name for f in (tmp_path / "stages").iterdir()] == [f"train-{'a' * 16}"]


def published(tmp_path: Path) -> tuple[Store, Path]:
    store = Store(tmp_path)
    work = store.work_folder("train", FINGERPRINT)
    work.mkdir(parents=True)
    (work / "artifact.pt2").write_bytes(b"native code")
    record = {"kind": "train", "fingerprint": FINGERPRINT, "results": {"top1": 0.5}}
    return store, store.publish("train", FINGERPRINT, record)


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    """In place, size and time of last change kept."""
    stat = path.stat()
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


@pytest.mark.parametrize(
    ("name", "old", "new"), [("artifact.pt2", b"native", b"hostile"[:6]), ("record.json", b"0.5", b"0.9")]
)
def test_what_was_changed_in_place_is_damaged(tmp_path: Path, name: str, old: bytes, new: bytes) -> None:
    store, folder = published(tmp_path)
    record = store.find("train", FINGERPRINT)
    assert record is not None
    assert store.file(record, "artifact.pt2").read_bytes() == b"native code"
    refuse_changed(folder)
    overwrite(folder / name, old, new)
    assert store.find("train", FINGERPRINT) is None
    with pytest.raises(UserError, match=f"{name}: not as it was written"):
        refuse_changed(folder)
    if name == "artifact.pt2":
        with pytest.raises(UserError, match="not as it was written"):
            store.file(record, name)


def test_a_stage_does_not_begin_on_a_changed_input(tmp_path: Path) -> None:
    """Whatever it reads first, native code or not."""
    from raq.stages.call import Call
    from raq.stages.transfer import at_hand

    _, folder = published(tmp_path)
    call = Call(
        name="evaluate/ptq",
        kind="evaluate",
        settings={},
        inputs={"artifact": str(folder)},
        folder=str(tmp_path),
        cpus=1,
    )
    assert at_hand(call) == call
    overwrite(folder / "artifact.pt2", b"native", b"hostil")
    with pytest.raises(UserError, match="not as it was written"):
        at_hand(call)


def test_a_runs_record_that_was_changed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.new_run("x")
    store.write_run(folder, {"id": folder.name, "complete": False})
    overwrite(folder / "run.json", b"false", b"true ")
    with pytest.raises(UserError, match="not as it was written"):
        read_run(folder)


def test_a_record_of_an_older_raq_has_neither_seal_nor_digests(tmp_path: Path) -> None:
    store, folder = published(tmp_path)
    record = {k: v for k, v in read_json(folder / "record.json").items() if k not in ("seal", "digests")}
    write_json(folder / "record.json", record)
    assert store.find("train", FINGERPRINT) is None, "one that does not say that it is of an older raq has lost it"
    machine = {"cpu": "a cpu", "features": [], "cpus": 1, "gpus": []}
    record["environment"] = {"machine": machine, "versions": {"raq": "0.1.0"}}
    write_json(folder / "record.json", record)
    assert store.find("train", FINGERPRINT) == record
    refuse_changed(folder)


def test_json_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    path.write_text('{"a": ')
    with pytest.raises(UserError, match="not a readable record"):
        read_json(path)


def test_runs_are_found_by_id_folder_and_latest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UserError, match="there is no run"):
        store.find_run("latest")
    first, second = store.new_run("x"), store.new_run("x")
    assert first != second
    for folder in (first, second):
        write_json(folder / "run.json", {})
    assert store.find_run("latest") == second
    assert store.find_run(first.name) == first
    assert store.find_run(str(first)) == first
    with pytest.raises(UserError, match="no run 'nothing'"):
        store.find_run("nothing")


def _hold(root: Path, ready, release) -> None:
    with Store(root).locked():
        ready.set()
        release.wait(30)


def test_one_writer(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, release))
    other.start()
    assert ready.wait(30)
    with pytest.raises(UserError, match="another raq run"), Store(tmp_path).locked():
        pass
    release.set()
    other.join()
    with Store(tmp_path).locked():
        pass


def test_unwritable_results(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Store(tmp_path / "file").locked():
        pass


def bench_record(**rows: dict) -> dict:
    """The record of a bench stage, as little of it as there can be; rows by contender."""
    usual = {"device": "cpu", "batch_size": 1, "rounds": 2, "mean_ms": 1.0, "std_ms": None, "p50_ms": 1.0,
             "p90_ms": None, "speedup": 1.0, "speedup_interval": None, "baseline": "fp32/eager"}  # fmt: skip
    found = [{**usual, "candidate": name, "runtime": "eager", **row} for name, row in rows.items()]
    return {"results": {"rows": found}}


TWO = {"round_p50_ms": [1.0, 1.0], "round_launch": [0, 0], "round_disturbed": [False, False]}


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        (TWO, None),
        ({**TWO, "round_number": [0, 1]}, None),
        ({"round_p50_ms": [1.0], "round_launch": [0], "round_disturbed": [False], "round_number": [1]}, None),
        ({"round_p50_ms": [1.0], "round_launch": [0], "round_disturbed": [False]}, "not as many rounds"),
        ({**TWO, "round_number": [1, 0]}, "not in rising order"),
        ({**TWO, "round_number": [0]}, "not as many throughout"),
        ({**TWO, "round_number": [7, 8]}, "no round in which its neighbours have a sample"),
        ({**TWO, "round_launch": [0, 1]}, "other launches"),
        ({"round_p50_ms": [1.0, 1.0], "round_launch": [0, 0]}, "only one of round_launch"),
        ({"round_p50_ms": [1.0, 1.0], "round_number": [0, 1]}, "round_number is there, and round_launch is not"),
        ({"round_p50_ms": []}, "not as many throughout"),
    ],
)
def test_rounds_that_do_not_go_together_are_damage(other: dict, complaint: str | None) -> None:
    rows = bench_record(fp32=TWO, ptq=other)["results"]["rows"]
    if complaint is None:
        _check_rounds(rows, "record.json")
    else:
        with pytest.raises(UserError, match=complaint):
            _check_rounds(rows, "record.json")


def test_a_sweep_of_an_older_version_is_read_as_one_of_today(tmp_path: Path) -> None:
    """raq 0.2 called its kind, and its folder, `sweep`; the record that is kept here is such a one."""
    kept = REFERENCE / "calibration-sweep"
    store = Store(tmp_path)
    record = json.loads((kept / "records.json").read_text())["sweep/ptq"]
    fingerprint = record["fingerprint"]
    folder = tmp_path / "stages" / f"sweep-{fingerprint[:16]}"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(sealed({**record, "kind": "sweep", "files": {}, "digests": {}})))
    found = store.read("ptq_sweep", fingerprint)
    assert found is not None
    assert found["kind"] == "ptq_sweep"
    assert found["results"] == record["results"]
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(sealed(json.loads((kept / "run.json").read_text()))))
    assert read_run(run)["stages"]["sweep/ptq"]["kind"] == "ptq_sweep"
    text = (folder / "record.json").read_text().replace('"curve"', '"curve "')
    (folder / "record.json").write_text(text)
    with pytest.raises(UserError, match="not as it was written"):
        store.read("ptq_sweep", fingerprint)
