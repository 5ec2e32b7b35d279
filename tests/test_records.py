"""The store: whole or not at all, one writer, nothing lost."""

import json
import multiprocessing
from pathlib import Path

import pytest

from raq.errors import UserError
from raq.records import Store, read_json, write_json

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
