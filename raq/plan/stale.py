"""Which stages of a plan are done already, and why the others are not. Imports neither torch nor ray."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from raq.errors import UserError
from raq.model.reading import changed_read
from raq.plan.stages import Stage
from raq.store.local import Store, read_run
from raq.store.views import View, view

MAX_NAMED = 3


class _Reads(View):
    read_files: dict[str, str] = Field(default_factory=dict)


class _Finished(View):
    id: str | None = None
    input_ids: dict[str, str | None] | None = None
    results: _Reads


class StageOfRun(View):
    """A stage as a run names it."""

    kind: str
    fingerprint: str
    depends: dict[str, str] | None = None


class EarlierRun(View):
    """Of a run's record, what a plan looks at."""

    experiment: str
    stages: dict[str, StageOfRun]


def stale_stages(plan: list[Stage], store: Store, fresh: bool = False) -> dict[str, str]:
    """The stages to run, in order, each with why; `fresh` re-runs all.

    A finished stage is stale too if one of its inputs has been made anew since: the numbers of a run stand on the same
    executions throughout.
    """
    stale: dict[str, str] = {}
    found = {stage.name: _finished(stage, store) for stage in plan}
    earlier = [run.stages for run in earlier_runs(store)]
    for stage in plan:
        waiting = [name for name in stage.inputs.values() if name in stale]
        record = found[stage.name]
        if fresh:
            stale[stage.name] = "asked for with --fresh"
        elif waiting:
            stale[stage.name] = f"after {', '.join(waiting)}"
        elif record is None and store.stage_folder(stage.kind, stage.fingerprint).exists():
            stale[stage.name] = "its record or a file of it is damaged"
        elif record is None:
            stale[stage.name] = _why(stage, earlier, store)
        elif record.input_ids != {role: _id(found[name]) for role, name in stage.inputs.items()}:
            stale[stage.name] = "an input has been made anew"
        elif name := changed_read(record.results.read_files, Path.cwd()):
            stale[stage.name] = f"{name} has changed, which it reads"
    return stale


def _finished(stage: Stage, store: Store) -> _Finished | None:
    """The stage's record; None if it has not finished."""
    record = store.find(stage.kind, stage.fingerprint)
    return None if record is None else view(_Finished, record, stage.name)


def _id(record: _Finished | None) -> str | None:
    return None if record is None else record.id


def _why(stage: Stage, earlier: Sequence[Mapping[str, StageOfRun]], store: Store) -> str:
    """What has changed since the newest run that finished this stage; or that none has."""
    seen = False
    for stages in earlier:
        known = stages.get(stage.name)
        if known is None:
            continue
        seen = True
        if known.fingerprint == stage.fingerprint:  # and it is not there
            return "has not finished"
        if store.find(known.kind, known.fingerprint) is not None:
            return difference(known.depends or {}, stage.depends)
    return "has not finished" if seen else "has not run"


def difference(before: Mapping[str, Any], now: Mapping[str, str]) -> str:
    """What differs between what two fingerprints cover, in words."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if not before or not names:
        return "has changed"
    said = [_change(name, before.get(name), now.get(name)) for name in sorted(names, key=_importance)]
    more = f" and {len(said) - MAX_NAMED} more" if len(said) > MAX_NAMED else ""
    return f"{', '.join(said[:MAX_NAMED])}{more}"


def _importance(name: str) -> tuple[int, str]:
    """What says most comes first: the user's files, what is set, libraries, and raq's own code."""
    order = ("settings/sources/", "settings/environment/", "settings/", "libraries/", "code", "inputs/")
    return next((n for n, begin in enumerate(order) if name.startswith(begin)), len(order)), name


def _change(name: str, before: object, now: object) -> str:
    """One difference: file, setting, version or raq's own code."""
    parts = name.split("/")
    if name == "code":
        return "raq's own code has changed"
    if name.startswith("settings/sources/") and len(parts) > 4:
        kind, what = parts[3], "/".join(parts[4:])
        if kind == "files":
            verb = "is new" if before is None else "is gone" if now is None else "has changed"
            return f"{what} {verb}"
        return f"{what} {_plain(before)} -> {_plain(now)}"
    shown = ".".join(parts[1:]) if len(parts) > 1 else name
    shown = shown.removeprefix("environment.")
    if "#" in (str(before)[:1], str(now)[:1]):
        return f"{shown} has changed"
    return f"{shown} {_plain(before)} -> {_plain(now)}"


def _plain(value: object) -> str:
    return "unset" if value is None else str(value).strip('"')


def earlier_runs(store: Store) -> list[EarlierRun]:
    """The readable runs, newest first; of the last hundred."""
    found = []
    for folder in list(reversed(store.run_folders()))[:100]:
        try:
            found.append(view(EarlierRun, read_run(folder), str(folder)))
        except UserError:
            continue
    return found
