"""The results as a node that does stages sees them: brought here before a stage, sent where they belong after it.

One protocol, and its two implementations: a folder that all nodes share, where nothing moves, here; an address, in
node_copy.py. `node_store` opens the right one, once a process. Neither torch nor ray.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from raq.store.files import atomic_write
from raq.store.local import refuse_changed

T = TypeVar("T")


class NodeStore(Protocol):
    """What a stage's processes need of the place where the results are.

    folder: always the one that the driver names, of an unfinished stage or of a training of a sweep; trials: the name
    of a folder of trials.
    """

    def inputs(self, folders: Mapping[str, str]) -> dict[str, str]:
        """By role, this node's folders of finished stages. UserError if a file of one is not as it was written."""

    def work(self, folder: str) -> str:
        """This node's folder in the place of that one."""

    def send_stage(self, folder: Path, execution: str) -> dict[str, int] | None:
        """Send what a stage left: names, sizes in bytes; None where the driver finds it itself."""

    def digests(self, folder: Path) -> dict[str, str] | None:
        """SHA-256 of what a stage left; None where the driver computes them."""

    def fetch_checkpoint(self, folder: Path, to: Path) -> None:
        """Bring the last checkpoint of the training that works in `folder` to `to`; without one, `to` is empty."""

    def send_checkpoint(self, folder: Path, checkpoint: Path) -> None:
        """Send the checkpoint of a training, for the node that may have to go on with it."""

    def log(self, log: Path) -> Path:
        """Where this node has that log of a run."""

    def send_log(self, log: Path) -> None:
        """Send a log that is complete."""

    def write_marker(self, folder: Path, name: str, text: str) -> None:
        """Write a small file for the stage's other processes, on whatever node."""

    def read_marker(self, folder: Path, name: str) -> str | None:
        """Its content; None if there is none."""

    def delete_marker(self, folder: Path, name: str) -> None:
        """Delete it."""

    def delete_work(self, folder: Path) -> None:
        """Delete what an unfinished training has at the address."""

    def delete_trainings(self, trials: str) -> None:
        """Delete what the unfinished trainings of a sweep that has ended have at the address."""

    def fetch_trials(self, trials: str) -> None:
        """Bring what trials have left, on whatever node, to this one."""

    def send_trials(self, trials: str) -> None:
        """Send what trials have left on this node."""

    def training_storage(self, folder: Path) -> tuple[str, Any]:
        """Where Ray Train keeps a training's checkpoints: a path, and the pyarrow file system it is of, if not ours."""

    def sends_checkpoints_itself(self) -> bool:
        """Whether checkpoints of Ray Train are sent by `send_training_checkpoint`, as Ray Train tries nothing again."""

    def send_training_checkpoint(self, local: Path, folder: Path, name: str) -> tuple[str, Any]:
        """Send a checkpoint of Ray Train; its path, and the file system that it is of."""

    def tried(self, read: Callable[[], T]) -> T:
        """What `read` returns, tried again while the place does not answer. StorageError if it does not in time."""

    def is_back(self, name: str) -> bool:
        """Whether the place may have been away, and answers now; `name`: of an object to ask for."""


class SharedFolder:
    """Results in a folder that this node has: nothing moves."""

    def inputs(self, folders: Mapping[str, str]) -> dict[str, str]:
        """As they are."""
        for folder in folders.values():
            refuse_changed(Path(folder))
        return dict(folders)

    def work(self, folder: str) -> str:
        """The same."""
        return folder

    def send_stage(self, folder: Path, execution: str) -> dict[str, int] | None:
        """None: they stay."""
        return None

    def digests(self, folder: Path) -> dict[str, str] | None:
        """None: the store computes them."""
        return None

    def fetch_checkpoint(self, folder: Path, to: Path) -> None:
        """Nothing: it is there."""

    def send_checkpoint(self, folder: Path, checkpoint: Path) -> None:
        """Nothing."""

    def log(self, log: Path) -> Path:
        """There."""
        return log

    def send_log(self, log: Path) -> None:
        """Nothing."""

    def write_marker(self, folder: Path, name: str, text: str) -> None:
        """Write it into the folder."""
        with atomic_write(folder / name) as scratch:
            scratch.write_text(text)

    def read_marker(self, folder: Path, name: str) -> str | None:
        """Read it there."""
        path = folder / name
        return path.read_text() if path.is_file() else None

    def delete_marker(self, folder: Path, name: str) -> None:
        """Delete it there."""
        (folder / name).unlink(missing_ok=True)

    def delete_work(self, folder: Path) -> None:
        """Nothing."""

    def delete_trainings(self, trials: str) -> None:
        """Nothing."""

    def fetch_trials(self, trials: str) -> None:
        """Nothing."""

    def send_trials(self, trials: str) -> None:
        """Nothing."""

    def training_storage(self, folder: Path) -> tuple[str, Any]:
        """In the stage's folder."""
        return str(folder / "ray_train"), None

    def sends_checkpoints_itself(self) -> bool:
        """No: Ray Train copies them."""
        return False

    def send_training_checkpoint(self, local: Path, folder: Path, name: str) -> tuple[str, Any]:
        """Never asked for."""
        raise AssertionError("Ray Train copies them")

    def tried(self, read: Callable[[], T]) -> T:
        """Once."""
        return read()

    def is_back(self, name: str) -> bool:
        """No: a folder is not away."""
        return False


@lru_cache(maxsize=4)
def node_store(address: str | None) -> NodeStore:
    """The results at an address; without one, in a folder that all nodes share. Opened once in a process."""
    if address is None:
        return SharedFolder()
    from raq.store.node_copy import NodeCopy
    from raq.store.opening import open_store
    from raq.store.remote import RemoteStore

    store = open_store(address)
    assert isinstance(store, RemoteStore), "an address has a remote store"
    return NodeCopy(store)
