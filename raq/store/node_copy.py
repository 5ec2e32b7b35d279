"""Results at an address, as a node sees them that has a copy of what it needed: the other half of remote.py.

What is sent can be cut off at any moment. So a checkpoint's files go under a name of their own, which a file written
last names; and each file of a trial is followed by one whose name says how long it is. Neither torch nor ray.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raq.errors import RaqError
from raq.store.files import file_digest
from raq.store.local import stage_files
from raq.store.object_storage import notify
from raq.store.remote import CURRENT, EXECUTION, RemoteStore, is_whole

MAX_LOOKS = 3  # for a checkpoint that goes away while it is read
T = TypeVar("T")


def work_name(folder: Path) -> str:
    """The name at the address of what an unfinished stage, or training of a sweep, that works in `folder` has there."""
    return f"work/{folder.name}" if folder.parent.name == "work" else f"work/{folder.parent.name}/{folder.name}"


def _of_trials(file: str) -> bool:
    """Whether a file of a folder of trials, by its name in there, is what a finished trial has left for others."""
    parts = file.split("/")
    return not parts[-1].startswith(".") and (len(parts) == 1 or (len(parts) == 2 and parts[0].startswith("ranges-")))


def _sent_whole(file: str, size: int) -> str:
    """The name of what says that a file of a folder of trials was sent whole."""
    return f".whole/{file}.{size}"


@dataclass(frozen=True)
class NodeCopy:
    """A `NodeStore` (node.py) of results at an address."""

    store: RemoteStore

    def inputs(self, folders: Mapping[str, str]) -> dict[str, str]:
        """The inputs, each brought here as it was written. UserError for one whose files have been changed."""
        return {role: str(self.store.fetch_stage(Path(folder).name)) for role, folder in folders.items()}

    def work(self, folder: str) -> str:
        """This node's folder in the place of the driver's."""
        parts = Path(folder).parts
        return str(self.store.root.joinpath(*parts[-2 if parts[-2] == "work" else -3 :]))

    def digests(self, folder: Path) -> dict[str, str] | None:
        """SHA-256 of what a stage left."""
        return {name: file_digest(path) for name, path in stage_files(folder).items()}

    def fetch_checkpoint(self, folder: Path, to: Path) -> None:
        """Bring the checkpoint that a training, on whatever node, has sent last to `to`; without one, empty that."""
        work, folder = work_name(folder), to
        for _ in range(MAX_LOOKS):
            pointer = self.store.storage.read(f"{work}/{CURRENT}")
            if pointer is None:
                shutil.rmtree(folder, ignore_errors=True)  # what is there is of an attempt that is no longer wanted
                return
            with suppress(FileNotFoundError):  # an attempt given up that still lives has just sent another one
                self._fetch_named(work, pointer, folder)
                return
        notify(f"{self.store.address}: the checkpoint that {work}/{CURRENT} names is gone: beginning anew")
        shutil.rmtree(folder, ignore_errors=True)

    def _fetch_named(self, work: str, pointer: bytes, folder: Path) -> None:
        """Fetch the files of the checkpoint that is named; FileNotFoundError if one is gone."""
        damaged = RaqError(f"{self.store.address}: {work}/{CURRENT} is damaged", "run with --fresh: it begins anew")
        try:
            current = json.loads(pointer)
            files = {name: (f"{work}/{current['id']}/{name}", size) for name, size in current["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise damaged from None
        for name, (sent, size) in files.items():
            self.store.storage.fetch(sent, folder / name)
            if not is_whole(folder / name, size):
                raise damaged

    def send_checkpoint(self, folder: Path, checkpoint: Path) -> None:
        """Put a training's checkpoint where other nodes find it: its files, what names them; the last one goes away.

        A file that is interrupted while it is sent would else stand there cut off, under the name of a good one.
        """
        work, sent = work_name(folder), uuid.uuid4().hex
        files = {file.name: file.stat().st_size for file in checkpoint.iterdir() if file.is_file()}
        before = self.store.storage.read(f"{work}/{CURRENT}")
        self.store.storage.send_folder(checkpoint, f"{work}/{sent}", files)
        self.store.storage.write(f"{work}/{CURRENT}", json.dumps({"id": sent, "files": files}).encode())
        with suppress(ValueError, KeyError, TypeError):
            self.store.storage.delete_folder(f"{work}/{json.loads(before or b'')['id']}")

    def fetch_trials(self, trials: str) -> None:
        """Copy what finished trials have left in this folder of trials to this machine, but for what is here.

        Only files that were sent whole, and of those that grow (counts of images) the longer one.
        """
        folder = self.store.root / "trials" / trials
        there = self.store.storage.sizes(f"trials/{trials}")
        for file, size in there.items():
            here = (folder / file).stat().st_size if (folder / file).is_file() else -1
            if _of_trials(file) and _sent_whole(file, size) in there and size > here:
                self.store.storage.fetch(f"trials/{trials}/{file}", folder / file)

    def send_trials(self, trials: str) -> None:
        """Put there what finished trials have left on this machine, but for what is there.

        Each file is followed by one whose name says how long it is: a file that is interrupted while it is sent stands
        there cut off.
        """
        folder = self.store.root / "trials" / trials
        there = self.store.storage.sizes(f"trials/{trials}")
        for path in sorted([*folder.glob("*"), *folder.glob("ranges-*/*")]):
            file = path.relative_to(folder).as_posix()
            with suppress(FileNotFoundError):  # another trial's scratch file
                if not path.is_file() or not _of_trials(file):
                    continue
                size, known = path.stat().st_size, there.get(file, -1)
                if size > known or _sent_whole(file, known) not in there:
                    self.store.storage.send(path, f"trials/{trials}/{file}")
                    self.store.storage.write(f"trials/{trials}/{_sent_whole(file, size)}", b"whole")

    def send_stage(self, folder: Path, execution: str) -> dict[str, int]:
        """Put the files of a stage that is done there, their names and sizes in bytes; they count with its record."""
        files = {name: path.stat().st_size for name, path in stage_files(folder).items()}
        self.store.storage.send_folder(folder, f"stages/{folder.name}/{execution}", files)
        kept = self.store.root / "stages" / folder.name
        shutil.rmtree(kept, ignore_errors=True)
        kept.parent.mkdir(parents=True, exist_ok=True)
        (folder / EXECUTION).write_text(execution)
        folder.rename(kept)
        return files

    def log(self, log: Path) -> Path:
        """A log in this node's copy."""
        here = self.store.root.joinpath(*log.parts[-4:])
        here.parent.mkdir(parents=True, exist_ok=True)
        return here

    def send_log(self, log: Path) -> None:
        """Send a log that is complete; a stage is not lost for its log."""
        with suppress(RaqError):
            self.store.send_log(log)

    def write_marker(self, folder: Path, name: str, text: str) -> None:
        """Write a small file for the stage's other processes."""
        self.store.storage.write(f"{work_name(folder)}/{name}", text.encode())

    def read_marker(self, folder: Path, name: str) -> str | None:
        """Its content; None if there is none."""
        content = self.store.storage.read(f"{work_name(folder)}/{name}")
        return None if content is None else content.decode()

    def delete_marker(self, folder: Path, name: str) -> None:
        """Delete it."""
        self.store.storage.delete(f"{work_name(folder)}/{name}")

    def delete_work(self, folder: Path) -> None:
        """Delete what an unfinished training has at the address."""
        self.store.storage.delete_folder(work_name(folder))

    def delete_trainings(self, trials: str) -> None:
        """Delete what the unfinished trainings of a sweep that has ended have at the address."""
        self.store.storage.delete_folder(f"work/{trials}")

    def training_storage(self, folder: Path) -> tuple[str, Any]:
        """Where Ray Train keeps a training's checkpoints."""
        return self.store.storage.path(f"{work_name(folder)}/ray_train"), self.store.storage.filesystem

    def sends_checkpoints_itself(self) -> bool:
        """Yes: Ray Train tries nothing again."""
        return True

    def send_training_checkpoint(self, local: Path, folder: Path, name: str) -> tuple[str, Any]:
        """Send a checkpoint of Ray Train, again while the address does not answer."""
        sent = f"{work_name(folder)}/ray_train/{name}"
        self.store.storage.send_folder(local, sent, [file.name for file in local.iterdir()])
        return self.store.storage.path(sent), self.store.storage.filesystem

    def tried(self, read: Callable[[], T]) -> T:
        """What `read` returns, tried again while the address does not answer."""
        return self.store.storage.tried(read)

    def is_back(self, name: str) -> bool:
        """Whether it answers now, which is waited for; StorageError if it does not in time."""
        print(
            f"training was interrupted as {self.store.address} did not answer; it goes on from its last epoch",
            flush=True,
        )
        self.store.storage.read(name)
        return True
