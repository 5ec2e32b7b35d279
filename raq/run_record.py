"""A run's own record: written when it begins, and again with how it ended. Neither torch nor ray."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raq.environment import environment
from raq.errors import RaqError, UserError
from raq.plan.prepare import Prepared
from raq.store.files import Record, now
from raq.store.local import UNFINISHED, Store, read_run
from raq.store.object_storage import StorageError
from raq.store.views import View, view, view_file


@contextmanager
def recorded(store: Store, folder: Path, prepared: Prepared, stale: Mapping[str, str]) -> Iterator[None]:
    """Write the run's record at the start, and at the end with how it ended."""
    (folder / "logs").mkdir(exist_ok=True)
    write_run(store, folder, prepared, stale, error=UNFINISHED)
    try:
        with _logs_kept(store, folder):
            yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        what = "interrupted" if interrupted else str(error) or type(error).__name__
        with suppress(StorageError, OSError):  # it stands there as unfinished, and what went wrong counts more
            write_run(store, folder, prepared, stale, error=what)
        raise
    write_run(store, folder, prepared, stale)


@contextmanager
def _logs_kept(store: Store, folder: Path) -> Iterator[None]:
    try:
        yield
    finally:
        with suppress(RaqError):  # how the run ended counts more
            store.keep_logs(folder)


class _StageOfRun(View):
    fingerprint: str


class _Run(View):
    stages: dict[str, _StageOfRun]
    complete: bool
    settings: dict[str, Any]
    started_at: str | None = None


def write_run(
    store: Store, folder: Path, prepared: Prepared, stale: Mapping[str, str], error: str | None = None
) -> Path:
    """Write run.json; a run is complete if it ended without an error."""
    earlier = view_file(_Run, folder / "run.json").started_at if (folder / "run.json").is_file() else None
    stages = {
        stage.name: {
            "kind": stage.kind,
            "fingerprint": stage.fingerprint,
            "id": store.execution(stage.kind, stage.fingerprint),
            "why": stale.get(stage.name),
            "depends": stage.depends,
        }
        for stage in prepared.plan
    }
    store.write_run(
        folder,
        {
            "id": folder.name,
            "experiment": prepared.experiment.name,
            "notes": list(prepared.notes),
            "settings": prepared.experiment.model_dump(mode="json"),
            "data": asdict(prepared.data),
            "stages": stages,
            "environment": environment(),
            "complete": error is None,
            "error": error,
            "started_at": earlier or now(),
            "finished_at": now(),
        },
    )
    return folder


def same_run(store: Store, prepared: Prepared) -> Path | None:
    """The newest complete run of the same experiment with the same fingerprints."""
    wanted: Record = {stage.name: stage.fingerprint for stage in prepared.plan}
    settings = prepared.experiment.model_dump(mode="json")
    for folder in reversed(store.run_folders()):
        try:
            record = view(_Run, read_run(folder), str(folder))
        except UserError:
            continue
        found = {name: stage.fingerprint for name, stage in record.stages.items()}
        if record.complete and found == wanted and record.settings == settings:
            return folder
    return None
