"""Results at an address, brought to the node that a stage runs on, and what it leaves sent there.

With a shared folder these functions do nothing. Neither torch nor ray.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raq.errors import RaqError
from raq.stages.call import Call, Progress, trials_folder
from raq.store.files import file_digest
from raq.store.local import refuse_changed, stage_files

if TYPE_CHECKING:
    from raq.model.checkpoints import TrainingContext
    from raq.store.remote import RemoteStore


def at_hand(call: Call) -> Call:
    """The call with folders of this node, and its inputs in them, each as it was written.

    Raises UserError for an input whose files or record have been changed: some of them are native code.
    """
    store = remote_store(call)
    if store is None:
        for folder in call.inputs.values():
            refuse_changed(Path(folder))
        return call
    inputs = {role: str(store.fetch_stage(Path(folder).name)) for role, folder in call.inputs.items()}
    own = Path(call.folder).parts
    return replace(call, inputs=inputs, folder=str(store.root.joinpath(*own[-2 if own[-2] == "work" else -3 :])))


def work_name(call: Call) -> str:
    """The name at the address of what an unfinished stage, or training of a sweep, has there."""
    folder = Path(call.folder)
    return f"work/{folder.name}" if folder.parent.name == "work" else f"work/{folder.parent.name}/{folder.name}"


def send_stage(call: Call, execution: str) -> dict[str, int] | None:
    """Send the files that a stage left in its folder, as those of this execution: names, sizes in bytes; else None."""
    store = remote_store(call)
    return None if store is None else store.send_stage(Path(call.folder), execution)


def digests_of_stage(call: Call) -> dict[str, str] | None:
    """SHA-256 of the files that a stage left in its folder, if they are to be sent; else None: where they stay, the
    store computes them."""
    if remote_store(call) is None:
        return None
    return {name: file_digest(path) for name, path in stage_files(Path(call.folder)).items()}


def fetch_checkpoint(call: Call, folder: Path) -> None:
    """Bring the checkpoint of an interrupted training, from whatever node, to this folder."""
    store = remote_store(call)
    if store is not None:
        store.fetch_checkpoint(work_name(call), folder)


def send_checkpoint(call: Call, folder: Path) -> None:
    """Send the checkpoint of a training that goes on, for the node that may have to go on with it."""
    store = remote_store(call)
    if store is not None:
        store.send_checkpoint(work_name(call), folder)


def log_here(call: Call, log: Path) -> Path:
    """Where this node has a log of a run."""
    store = remote_store(call)
    if store is None:
        return log
    here = store.root.joinpath(*log.parts[-4:])
    here.parent.mkdir(parents=True, exist_ok=True)
    return here


@contextmanager
def log_sent(call: Call, log: Path) -> Iterator[None]:
    """Send this log of a stage when it is complete, however the stage ends; `log` lies in a run's folder."""
    store = remote_store(call)
    try:
        yield
    finally:
        if store is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            with suppress(RaqError):  # a stage is not lost for its log
                store.send_log(log)


def write_marker(call: Call, name: str, text: str) -> None:
    """Write a marker file for the stage's other processes, on whatever node."""
    store = remote_store(call)
    if store is None:
        scratch = Path(call.folder) / f".{name}"
        scratch.write_text(text)
        scratch.replace(Path(call.folder) / name)
    else:
        store.storage.write(f"{work_name(call)}/{name}", text.encode())


def read_marker(call: Call, name: str) -> str | None:
    """The content of a marker file of this stage; None if there is none."""
    store = remote_store(call)
    if store is None:
        path = Path(call.folder) / name
        return path.read_text() if path.is_file() else None
    content = store.storage.read(f"{work_name(call)}/{name}")
    return None if content is None else content.decode()


def delete_marker(call: Call, name: str) -> None:
    """Delete a marker file of this stage."""
    store = remote_store(call)
    if store is None:
        (Path(call.folder) / name).unlink(missing_ok=True)
    else:
        store.storage.delete(f"{work_name(call)}/{name}")


def forget_work(call: Call) -> None:
    """Take away what an unfinished training has at the address."""
    store = remote_store(call)
    if store is not None:
        store.storage.delete_folder(work_name(call))


def forget_trainings(call: Call) -> None:
    """Take away what the unfinished trainings of a sweep that has ended have at the address."""
    store = remote_store(call)
    if store is not None:
        store.storage.delete_folder(f"work/{trials_folder(call).name}")


def fetch_trials(call: Call) -> None:
    """Bring what trials have left, on whatever node, to this one."""
    store = remote_store(call)
    if store is not None:
        store.fetch_trials(trials_folder(call).name)


def trials_at_hand(call: Call) -> Call:
    """The call of a sweep for a trial on this node: its inputs, and what other trials have left, are here."""
    here = at_hand(call)
    fetch_trials(here)
    return here


def send_trials(call: Call) -> None:
    """Send what trials have left on this node."""
    store = remote_store(call)
    if store is not None:
        store.send_trials(trials_folder(call).name)


def remote_store(call: Call) -> "RemoteStore | None":
    """The store of this call, if its results lie at an address."""
    if call.address is None:
        return None
    from raq.store.opening import open_store
    from raq.store.remote import RemoteStore

    store = open_store(call.address)
    assert isinstance(store, RemoteStore)
    return store


def local_context(call: Call, progress: Progress) -> "TrainingContext":
    """Training in this process, its checkpoints in the stage's folder, and sent where the results are elsewhere."""
    from raq.model.checkpoints import LocalContext

    def saved(folder: Path) -> None:
        send_checkpoint(call, folder)

    return LocalContext(Path(call.folder) / "checkpoint", call.device, progress, saved)
