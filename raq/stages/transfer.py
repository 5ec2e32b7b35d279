"""What a stage's processes fetch and send, by its call: the results may be at an address (store/node.py).

Neither torch nor ray.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from raq.stages.call import Call, Progress, trials_folder
from raq.store.node import NodeStore, node_store

if TYPE_CHECKING:
    from raq.model.checkpoints import TrainingContext


def store_of(call: Call) -> NodeStore:
    """Where the results of this call are, as this node sees it."""
    return node_store(call.address)


def at_hand(call: Call) -> Call:
    """The call with folders of this node, and its inputs in them, each as it was written.

    Raises UserError for an input whose files or record have been changed: some of them are native code.
    """
    store = store_of(call)
    return replace(call, inputs=store.inputs(call.inputs), folder=store.work(call.folder))


@contextmanager
def log_sent(call: Call, log: Path) -> Iterator[None]:
    """Send this log of a stage when it is complete, however the stage ends; `log` lies in a run's folder."""
    store = store_of(call)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        store.send_log(log)


def write_marker(call: Call, name: str, text: str) -> None:
    """Write a marker file for the stage's other processes, on whatever node."""
    store_of(call).write_marker(Path(call.folder), name, text)


def read_marker(call: Call, name: str) -> str | None:
    """The content of a marker file of this stage; None if there is none."""
    return store_of(call).read_marker(Path(call.folder), name)


def delete_marker(call: Call, name: str) -> None:
    """Delete a marker file of this stage."""
    store_of(call).delete_marker(Path(call.folder), name)


def fetch_trials(call: Call) -> None:
    """Bring what trials have left, on whatever node, to this one."""
    store_of(call).fetch_trials(trials_folder(call).name)


def trials_at_hand(call: Call) -> Call:
    """The call of a sweep for a trial on this node: its inputs, and what other trials have left, are here."""
    here = at_hand(call)
    fetch_trials(here)
    return here


def send_trials(call: Call) -> None:
    """Send what trials have left on this node."""
    store_of(call).send_trials(trials_folder(call).name)


def local_context(call: Call, progress: Progress) -> "TrainingContext":
    """Training in this process, its checkpoints in the stage's folder, and sent where the results are elsewhere."""
    from raq.model.checkpoints import LocalContext

    def saved(checkpoint: Path) -> None:
        store_of(call).send_checkpoint(Path(call.folder), checkpoint)

    return LocalContext(Path(call.folder) / "checkpoint", call.device, progress, saved)
