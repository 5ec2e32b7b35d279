"""Where results are: a folder, or an address, of which this machine keeps what it needed in a folder of its cache.

At an address a stage's files lie in a folder of the execution that made them, and its record, put there last, names
that: a stage is there whole or not at all, and an execution that was given up harms none. Neither torch nor ray.

    stages/<kind>-<fingerprint>/record.json, <execution's id>/...
    runs/<run id>/run.json, logs/
    work/<kind>-<fingerprint>/      checkpoints of unfinished trainings
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raq.errors import RaqError, UserError
from raq.store.files import Record, exclusive_lock, file_digest, read_json, write_json
from raq.store.lease import Lease
from raq.store.local import Store, check_record, refuse_unsealed, sealed
from raq.store.migration import earlier_folder, migrated_stage
from raq.store.object_storage import Storage, StorageError

ADDRESS, EXECUTION, RECORD, RUN, CURRENT = ".address", ".execution", "record.json", "run.json", "checkpoint.json"


def _stage_record(content: bytes, place: str) -> Record:
    """A stage's record as it was sent; UserError if it is damaged or has been changed."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{place}: not a readable record", "delete that folder there and run again")
    refuse_unsealed(record, place)
    found: Record = migrated_stage(record)
    kind = found.get("kind")
    check_record(found, kind if isinstance(kind, str) else "", str(found.get("fingerprint")), place)
    if not isinstance(found.get("id"), str):
        raise UserError(f"{place}: damaged at id", "delete that folder there and run again")
    return found


def is_whole(path: Path, size: int | None, digest: str | None = None) -> bool:
    """Whether a file is here as it was sent; without a digest, by its size."""
    whole = path.is_file() and path.stat().st_size == size
    return whole and (digest is None or file_digest(path) == digest)


@dataclass(frozen=True)
class RemoteStore(Store):
    """A store at an address; `root` is this machine's copy of what it needed of it."""

    storage: Storage

    @cached_property
    def lease(self) -> Lease:
        """The lease of the address, held while a run writes there."""
        return Lease(self.storage)

    @property
    def address(self) -> str:
        """The address of the results."""
        return self.storage.uri

    def read(self, kind: str, fingerprint: str) -> Record | None:
        """The record of a finished stage; None if there is none.

        Raises UserError, naming the object and the key, if it or one of its files is damaged, changed or gone.
        """
        folder = self._name_of(kind, fingerprint)
        place = f"{self.address}: {folder}/{RECORD}"
        content = self.storage.read(f"{folder}/{RECORD}")
        if content is None:
            return None
        record = _stage_record(content, place)
        check_record(record, kind, fingerprint, place)
        sizes = self.storage.sizes(f"{folder}/{record['id']}")
        if any(sizes.get(name) != size for name, size in record["files"].items()):
            raise UserError(f"{place}: a file of it is damaged or gone", "run again: it is made anew")
        return record

    def file(self, record: Record, name: str) -> Path:
        """A file of a finished stage, on this machine; copied here if it is not."""
        with self._copying(record) as folder:
            self._fetch_whole(record, self._files_of(record), name, folder)
        return folder / name

    def _fetch_whole(self, record: Record, files: str, name: str, folder: Path) -> None:
        """Bring a file of a record here, if it is not; RaqError if what is there is not what was sent."""
        wanted = record["files"].get(name), (record.get("digests") or {}).get(name)
        if not is_whole(folder / name, *wanted):
            self.storage.fetch(f"{files}/{name}", folder / name)
            if not is_whole(folder / name, *wanted):
                raise RaqError(
                    f"{self.address}: {files}/{name} is not as it was written: its SHA-256 is another one",
                    "delete that stage's folder there and run again: it is made anew",
                )

    def place(self, record: Record, name: str) -> str:
        """The address of a file of a finished stage."""
        return f"{self.address.partition('?')[0]}/{self._files_of(record)}/{name}"

    def fetch_stage(self, name: str) -> Path:
        """A folder of this machine with all files of a finished stage, `name` that of its folder, and its record."""
        content = self.storage.read(f"stages/{name}/{RECORD}")
        if content is None:
            raise RaqError(f"{self.address}: stages/{name} is gone", "run again: it is made anew")
        record = _stage_record(content, f"{self.address}: stages/{name}/{RECORD}")
        with self._copying(record) as folder:
            for file in record["files"]:
                self._fetch_whole(record, f"stages/{name}/{record['id']}", file, folder)
            write_json(folder / RECORD, record)
        return folder

    def publish(self, kind: str, fingerprint: str, record: Record) -> Path:
        """Make a stage whose `record["files"]` were sent by the execution `record["id"]` the finished stage.

        Raises StorageError if they are not there as they were sent.
        """
        self.check_lease()
        folder = self._name_of(kind, fingerprint)
        there = self.storage.sizes(f"{folder}/{record['id']}")
        if any(there.get(name) != size for name, size in record["files"].items()):
            raise StorageError(
                f"{self.address}: files of {folder} are not there as they were sent",
                "run again; if another run writes there, wait for it",
            )
        before = self.storage.read(f"{folder}/{RECORD}")
        self.storage.write(f"{folder}/{RECORD}", json.dumps(sealed(record), indent=1, allow_nan=False).encode())
        self.delete_work(kind, fingerprint)
        with suppress(ValueError, KeyError, TypeError):
            earlier = json.loads(before or b"")["id"]
            if earlier != record["id"]:
                self.storage.delete_folder(f"{folder}/{earlier}")
        return self.stage_folder(kind, fingerprint)

    def check_lease(self) -> None:
        """StorageError if another run has taken the lock that this one holds."""
        self.lease.check()

    def delete_work(self, kind: str, fingerprint: str) -> None:
        """Delete what an unfinished stage has so far."""
        super().delete_work(kind, fingerprint)
        work = f"work/{self.work_folder(kind, fingerprint).name}"
        self.storage.delete(f"{work}/{CURRENT}")  # first: what it names goes with the rest
        self.storage.delete_folder(work)

    def write_run(self, folder: Path, run: Record) -> None:
        """Write a run's record."""
        self.check_lease()
        content = json.dumps(sealed(run), indent=1, allow_nan=False)
        self.storage.write(f"runs/{folder.name}/{RUN}", content.encode())
        super().write_run(folder, run)

    def keep_logs(self, folder: Path) -> None:
        """Keep the driver's log of a run that has ended; stages send their own."""
        for log in (folder / "logs").glob("driver.log"):
            self.send_log(log)

    def send_log(self, log: Path) -> None:
        """Put a log of a run there."""
        self.storage.send(log, "/".join(log.parts[-4:]))

    def run_folders(self) -> list[Path]:
        """The runs, oldest first, with their records on this machine."""
        names = self.storage.names("runs")
        for name in names:
            record = self.root / "runs" / name / RUN
            known = False
            with suppress(UserError):
                known = bool(read_json(record).get("complete"))  # such a record changes no more
            if not known:
                with suppress(FileNotFoundError):
                    self.storage.fetch(f"runs/{name}/{RUN}", record)
        return [folder for folder in super().run_folders() if folder.name in names]

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the store for one writer; UserError if another run holds it, StorageError if it cannot be reached."""
        with super().locked(), self.lease.held():
            yield

    def _name_of(self, kind: str, fingerprint: str) -> str:
        name = self.stage_folder(kind, fingerprint).name
        earlier = earlier_folder(name)
        if earlier is not None and not self.storage.names(f"stages/{name}") and self.storage.names(f"stages/{earlier}"):
            name = earlier
        return f"stages/{name}"

    def _files_of(self, record: Record) -> str:
        return f"{self._name_of(record['kind'], record['fingerprint'])}/{record['id']}"

    @contextmanager
    def _copying(self, record: Record) -> Iterator[Path]:
        """This machine's folder of a finished stage, with this execution's files only; one process at a time."""
        folder = self.stage_folder(record["kind"], record["fingerprint"])
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(folder.with_name(f".{folder.name}.lock")):
            of = folder / EXECUTION
            if not of.is_file() or of.read_text() != record["id"]:
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                of.write_text(record["id"])
            yield folder
