"""The results store: a folder a stage, named by its fingerprint, and a folder a run. Neither torch nor ray.

    stages/<kind>-<fingerprint>/    record.json and the stage's files
    runs/<run id>/                  run.json, logs/
    work/<kind>-<fingerprint>/      what unfinished stages have so far (training checkpoints)

A stage's folder appears by one rename, whole or not at all; a JSON file is written beside its place, synced, renamed.
"""

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from raq.errors import RaqError, UserError
from raq.store.files import Record, digest, file_digest, read_json, write_json
from raq.store.migration import earlier_folder, migrated_run, migrated_stage
from raq.store.schema import check_run, check_stage

CHECKPOINTS = ("checkpoint", "ray_train")  # what a training needs to go on, and nobody after it has ended
UNFINISHED = "unfinished"  # what a run says went wrong until it has ended
SEAL = "seal"
"""The key of a record's digest of itself. It shows damage, not of forgery: whoever can write can seal."""


def read_run(folder: Path) -> Record:
    """The record of a run; UserError if it is missing, damaged, changed since it was written, or not one."""
    if folder.is_dir() and not (folder / "run.json").exists():
        raise UserError(f"{folder}: not the folder of a run", "give one of those in the results folder, under runs")
    run = read_json(folder / "run.json")
    if not is_as_sealed(run):
        raise _changed(folder / "run.json")
    run = migrated_run(run)
    check_run(run, str(folder / "run.json"))
    return run


def sealed(record: Record) -> Record:
    """The record with a digest of itself, by which a later change is noticed."""
    content = {key: value for key, value in record.items() if key != SEAL}
    return {**content, SEAL: digest(content)}


def is_as_sealed(record: Record) -> bool:
    """Whether a record is as it was written; one without a seal, only if it says that it is of raq before 0.2."""
    if SEAL in record:
        return bool(sealed(record)[SEAL] == record[SEAL])
    environment = record.get("environment")
    versions = environment.get("versions") if isinstance(environment, dict) else None
    return isinstance(versions, dict) and versions.get("raq") == "0.1.0"


@lru_cache(maxsize=4096)
def _known_digest(path: str, size: int, changed_ns: int, status_ns: int) -> str:
    """`file_digest` of a file that has not changed since, as its size and its two times have it."""
    return file_digest(Path(path))


def stage_files(folder: Path) -> dict[str, Path]:
    """The files that a stage has left in its folder, by name; not its record, nor what only an unfinished one needs."""
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "record.json" and path.relative_to(folder).parts[0] not in CHECKPOINTS
    }


def changed_file(folder: Path, record: Record, *, again: bool = False) -> str | None:
    """The first file of a record that is not as it was written, by size and SHA-256; None if all are.

    again: compute digests anew, whatever is known of a file from before.
    """
    digests = record.get("digests") or {}
    for name, size in record["files"].items():
        path = folder / name
        if _size(path) != size:
            return str(name)
        if name in digests:
            stat = path.stat()
            known = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
            if (file_digest(path) if again else _known_digest(*known)) != digests[name]:
                return str(name)
    return None


def refuse_changed(folder: Path) -> None:
    """UserError if a finished stage's record, or a file of it, is not as it was written. Everything is read."""
    record = read_json(folder / "record.json")
    if not is_as_sealed(record) or not isinstance(record.get("files"), dict):
        raise _changed(folder / "record.json")
    name = changed_file(folder, record, again=True)
    if name is not None:
        raise _changed(folder / name)


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path}: not as it was written: its SHA-256 is another one", "delete its folder and run again: it is made anew"
    )


def refuse_unsealed(record: Record, place: str) -> None:
    """UserError unless the record is as it was written."""
    if not is_as_sealed(record):
        raise UserError(
            f"{place}: not as it was written: its own digest is another one", "delete its folder and run again"
        )


def check_record(record: Record, kind: str, fingerprint: str, place: str) -> None:
    """UserError, naming the place and the key, unless this is the record of a finished stage with this fingerprint."""
    check_stage(record, place, kind)
    if record["fingerprint"] != fingerprint:
        raise UserError(f"{place}: the record of another stage", "delete its folder and run again")


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@dataclass(frozen=True)
class Store:
    """A results folder."""

    root: Path

    @property
    def address(self) -> str | None:
        """The address of the results, if they do not lie in the folder itself."""
        return None

    def stage_folder(self, kind: str, fingerprint: str) -> Path:
        """Where a finished stage is."""
        folder = self.root / "stages" / f"{kind}-{fingerprint[:16]}"
        earlier = earlier_folder(folder.name)
        if earlier is not None and not folder.exists() and folder.with_name(earlier).exists():
            return folder.with_name(earlier)
        return folder

    def work_folder(self, kind: str, fingerprint: str) -> Path:
        """Where an unfinished stage works; the same one again after an interruption."""
        return self.root / "work" / f"{kind}-{fingerprint[:16]}"

    def find(self, kind: str, fingerprint: str) -> Record | None:
        """The record of a finished stage; None if there is none, or if it or one of its files is damaged or gone."""
        try:
            return self.read(kind, fingerprint)
        except UserError:
            return None

    def results(self, kind: str, fingerprint: str) -> Record | None:
        """The results of a finished stage; None where `find` gives none."""
        record = self.find(kind, fingerprint)
        return None if record is None else record["results"]

    def execution(self, kind: str, fingerprint: str) -> str | None:
        """Which execution left a finished stage; None where `find` gives none."""
        record = self.find(kind, fingerprint)
        return None if record is None else record["id"]

    def read(self, kind: str, fingerprint: str) -> Record | None:
        """The record of a finished stage; None if there is none.

        Raises UserError, naming the file and the key, if it or one of its files is damaged, changed or gone.
        """
        folder = self.stage_folder(kind, fingerprint)
        if not folder.exists():
            return None
        place = str(folder / "record.json")
        found = read_json(folder / "record.json")
        refuse_unsealed(found, place)
        record: Record = migrated_stage(found)
        check_record(record, kind, fingerprint, place)
        name = changed_file(folder, record)
        if name is not None:
            raise _changed(folder / name)
        return record

    def file(self, record: Record, name: str) -> Path:
        """A file of a finished stage, on this machine; UserError if it is not as it was written."""
        folder = self.stage_folder(record["kind"], record["fingerprint"])
        files, digests = ({name: (record.get(key) or {}).get(name)} for key in ("files", "digests"))
        if changed_file(folder, {"files": files, "digests": digests if digests[name] else {}}) is not None:
            raise _changed(folder / name)
        return folder / name

    def place(self, record: Record, name: str) -> str:
        """Where a file of a finished stage lies, for people."""
        return str(self.file(record, name))

    def delete_work(self, kind: str, fingerprint: str) -> None:
        """Delete what an unfinished stage has so far."""
        work = self.work_folder(kind, fingerprint)
        if work.exists():
            shutil.rmtree(work)

    def publish(self, kind: str, fingerprint: str, record: Record) -> Path:
        """Make a stage's work, with its record, the finished stage.

        `record["id"]`, made up if it has none, distinguishes this execution from another of the same fingerprint.
        """
        work, final = self.work_folder(kind, fingerprint), self.stage_folder(kind, fingerprint)
        found = stage_files(work)
        record = {
            "kind": kind,
            "fingerprint": fingerprint,
            **record,
            "id": record.get("id") or uuid.uuid4().hex,
            "files": {name: path.stat().st_size for name, path in found.items()},
            "digests": {name: file_digest(path) for name, path in found.items()},
        }
        write_json(work / "record.json", sealed(record))
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():  # --fresh, or a damaged record
            old = final.with_name(f".old-{final.name}-{os.getpid()}")
            final.rename(old)
            shutil.rmtree(old)
        work.rename(final)
        for checkpoints in CHECKPOINTS:  # now that nobody will go on from them
            shutil.rmtree(final / checkpoints, ignore_errors=True)
        return final

    def check_lease(self) -> None:
        """Nothing: a folder's lock is held for as long as its process lives."""

    def write_run(self, folder: Path, run: Record) -> None:
        """Write a run's record."""
        write_json(folder / "run.json", sealed(run))

    def keep_logs(self, folder: Path) -> None:
        """Keep the logs of a run that has ended."""

    def run_folders(self) -> list[Path]:
        """The runs, oldest first (their names begin with the time)."""
        folder = self.root / "runs"
        if not folder.is_dir():
            return []
        found = glob.glob("*/run.json", root_dir=folder)  # noqa: PTH207 - of ten thousand runs Path's takes a second
        return [folder / name for name in sorted(place.partition("/")[0] for place in found)]

    def new_run(self, name: str) -> Path:
        """A new run's folder."""
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        for attempt in range(100):
            folder = self.root / "runs" / (f"{stamp}-{name}" + (f"-{attempt}" if attempt else ""))
            try:
                folder.mkdir(parents=True)
                return folder
            except FileExistsError:
                continue
        raise RaqError(f"{self.root / 'runs'}: no name is left for a run of this second", "try again")

    def find_run(self, which: str) -> Path:
        """A run's folder from a path, a run's id or "latest"; UserError if there is none."""
        runs = self.run_folders()
        if which == "latest":
            if not runs:
                raise UserError(f"{self.root}: there is no run here", "make one with 'raq run', or give --results")
            return runs[-1]
        by_id = self.root / "runs" / which
        for folder in (by_id, Path(which)):
            if (folder / "run.json").is_file():
                return folder.resolve()
        known = ", ".join(f.name for f in runs[-3:]) or "none"
        raise UserError(
            f"there is no run {which!r} in {self.root}", f"the last ones: {known}; or 'latest', or a folder"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for one writer; UserError if it cannot be written or another run holds it."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("a")
        except OSError as error:
            raise UserError(
                f"{self.root}: results cannot be written there: {error.strerror}", "give another folder with --results"
            ) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{self.root}: another raq run is writing here",
                    "wait for it, or give another folder with --results",
                ) from None
            yield
