"""Files written whole or not at all, JSON, and digests. Imports neither torch nor ray."""

import fcntl
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from raq.errors import UserError
from raq.store.schema import check_depth

MAX_RECORD_BYTES = 200_000_000
Record = dict[str, Any]


def digest(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def short_digest(content: Any) -> str:
    """The first 16 hexadecimal digits of `digest`: a name for files."""
    return digest(content)[:16]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A scratch path beside `path`, of the same suffix, synced and renamed to it at the end: whole or not at all."""
    scratch = path.with_name(f".{uuid.uuid4().hex}-{path.name}")
    try:
        yield scratch
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time, by this file; the others wait, or get BlockingIOError."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    with atomic_write(path) as scratch, scratch.open("w") as file:
        json.dump(value, file, indent=1, allow_nan=False)


def refuse_constant(text: str) -> Any:
    """ValueError for NaN and infinities, which Python's reader takes and JSON has not: a `parse_constant`."""
    raise ValueError(f"{text} is no number of JSON")


def read_json(path: Path) -> Record:
    """Read a JSON record; UserError if it is missing or damaged."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
        if path.is_file() and path.stat().st_size > MAX_RECORD_BYTES:
            raise ValueError(f"it is larger than {MAX_RECORD_BYTES / 1e6:.0f} MB")
        loaded = json.loads(path.read_text(), parse_constant=refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a readable record: {error}", "delete its folder and run again") from None
    if not isinstance(loaded, dict):
        raise UserError(f"{path}: not a record", "delete its folder and run again")
    check_depth(loaded, str(path))
    return loaded


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> str:
    """The time, in UTC, ISO 8601."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
