"""Which files of the user a stage depends on: those known when the plan was made, and those it reads when it runs.

A plan knows what the user's function imports (`user_code.sources_of`). What the function opens or imports only when it
is called is recorded here, by the process that runs it: opened files through a Python audit hook, modules from
sys.modules. Their digests are stored in the stage's record: the stage is stale once one of them changes.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raq.errors import UserError
from raq.model.imported_code import users_files, users_modules
from raq.store.files import file_digest
from raq.store.settings import Sources

MAX_FILES, MAX_FILE_BYTES = 1000, 50_000_000
NOT_LOOKED_AT = ("results", "__pycache__")
_opened: list[
    set[str]
] = []  # one set per active recording; an audit hook cannot be removed, so it is installed once per process
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened and isinstance(arguments[0], str):
        flags = arguments[2] if isinstance(arguments[2], int) else 0
        if flags & os.O_ACCMODE == os.O_RDONLY:
            for names in _opened:
                names.add(arguments[0])


@contextmanager
def recording_reads(
    planned: Mapping[str, Sources], folder: str | None, ignored: tuple[Path, ...]
) -> Iterator[dict[str, str]]:
    """Record which files user code reads inside `folder` during the block. Yields a dict, filled on exit: SHA-256 by
    name.

    planned: the sources of a plan, by function; their files must be as planned with, before and after, else UserError.
    ignored: files and folders that are covered by other means, such as data and weights. A plan without user code
    records nothing; nor are files beyond MAX_FILES or MAX_FILE_BYTES recorded.
    """
    found: dict[str, str] = {}
    if not planned or folder is None:
        yield found
        return
    refuse_changed_sources(planned, Path(folder))
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    opened: set[str] = set()
    _opened.append(opened)
    try:
        yield found
    finally:
        _opened.remove(opened)
    refuse_changed_sources(planned, Path(folder))
    known = {name for sources in planned.values() for name in sources.files}
    found |= _digests(opened, Path(folder).resolve(), known, ignored)


def refuse_changed_sources(planned: Mapping[str, Sources], folder: Path) -> None:
    """UserError if a file of the user's code differs from the version the plan was made with."""
    for function, sources in planned.items():
        for name, digest in sources.files.items():
            path = folder / name
            if not path.is_file() or file_digest(path) != digest:
                raise UserError(f"{name}, which {function} imports, has changed since the plan was made", "run again")


def _digests(opened: set[str], folder: Path, known: set[str], ignored: tuple[Path, ...]) -> dict[str, str]:
    places = {Path(os.path.normpath(folder / name)) for name in opened}
    places |= set(users_modules(set()).values())
    found: dict[str, str] = {}
    is_users = users_files()
    for place in sorted(places):
        inside = place.is_relative_to(folder)
        name = str(place.relative_to(folder)) if inside else str(place)
        if name in known or str(place) in known or any(place.is_relative_to(path) for path in ignored):
            continue
        parts = Path(name).parts if inside else ()
        if any(part.startswith(".") or part in NOT_LOOKED_AT for part in parts):
            continue
        if not inside and (place.suffix != ".py" or not is_users(place.resolve())):
            continue
        if place.is_file() and place.stat().st_size <= MAX_FILE_BYTES and len(found) < MAX_FILES:
            found[name] = file_digest(place)
    return found


def changed_read(read_files: Mapping[str, str], folder: Path) -> str | None:
    """The first recorded file (by name, its SHA-256) whose content has changed; None if none has.

    Files outside the working folder are checked only if they exist on this machine.
    """
    for name, digest in read_files.items():
        path = folder / name
        if Path(name).is_absolute() and not path.exists():
            continue
        if not path.is_file() or file_digest(path) != digest:
            return str(name)
    return None
