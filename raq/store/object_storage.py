"""A folder at any address that pyarrow.fs knows (s3://, gs://, abfs://, hdfs://), for nodes that share no other one.

An object store shows a file when it is complete; where a file system would show half of one, it is written beside its
place and moved. But pyarrow completes a file whose writing an exception interrupts: what must be whole is named, with
its size, by a record that is put after it. What does not answer is asked again for ANSWER_TIMEOUT_S, and every time is
said on standard error, and to those who asked to be `subscribed`.

Imports neither torch nor ray; pyarrow inside the functions.
"""

import errno
import math
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from raq.errors import RaqError, UserError, first_line

ANSWER_TIMEOUT_S = 45.0
WAITS_S = (1.0, 2.0, 4.0, 8.0)
REQUEST_TIMEOUT_S, S3_ATTEMPTS = 5.0, 2  # a silent S3 is noticed after 10 s; by default after 99
ATOMIC_PUT = ("s3", "gcs", "abfs")  # the file systems where a file appears whole
GOOGLE = ("gs://", "gcs://")
REFUSALS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE")
OPTIONS = {"region", "scheme", "endpoint_override"}
NAMED = re.compile(r"(abfss?://[a-z0-9-]+|gs://anonymous)@[^@]*$")  # an @ that comes after no secret
EXAMPLE = "give for example s3://BUCKET/FOLDER, or a folder's path"
LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # faults of this machine's disk
Answer = TypeVar("Answer")
_listeners: list[Callable[[str], None]] = []


def notify(text: str) -> None:
    """Say what happens to the storage."""
    with suppress(OSError):  # a log's full disk
        sys.stderr.write(f"raq: {text}\n")
        sys.stderr.flush()
    for listener in [*_listeners]:
        listener(text)


@contextmanager
def subscribed(listener: Callable[[str], None]) -> Iterator[None]:
    """Tell this function too, from any thread of this process, while the context lasts."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class StorageError(RaqError):
    """The storage did not answer, or refused; exit code 1."""


def is_address(results: str) -> bool:
    """Whether results lie at an address, and not in a folder of this machine."""
    return "://" in results


def check_address(uri: str) -> None:
    """UserError if it is not an address of a storage, or has credentials in it: it is written to logs and records."""
    scheme = uri.partition("://")[0]
    if "@" in unquote(uri) and not NAMED.match(uri):  # wherever it stands: a secret may have slashes
        raise UserError(
            f"--results {scheme}://...: credentials do not belong in an address, which logs and records show",
            "leave them to the environment or the configuration files of the storage's own tools, on every node",
        )
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UserError(f"--results {scheme}://...: not an address: {error}", EXAMPLE) from None
    unknown = {key for key, _ in parse_qsl(parts.query, keep_blank_values=True)} - OPTIONS
    if unknown:
        raise UserError(
            f"--results {parts.scheme}://...: unknown option {min(unknown)!r}",
            f"known are {', '.join(sorted(OPTIONS))}",
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise UserError(f"--results {uri}: not the address of a folder", EXAMPLE)


@dataclass(frozen=True)
class Storage:
    """A folder at an address. Names of files in it are relative to it, with slashes.

    Every function raises StorageError if the storage refuses, or does not answer for ANSWER_TIMEOUT_S.
    """

    uri: str

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """The file system, and the folder's path in it; UserError if nothing handles such addresses."""
        import pyarrow
        from pyarrow import fs

        check_address(self.uri)
        uri = self.uri
        if uri.startswith(GOOGLE):  # its own retries, of a quarter of an hour, would come before ours
            uri += ("&" if "?" in uri else "?") + f"retry_limit_seconds={ANSWER_TIMEOUT_S / 3:g}"
        try:  # asks the network for a region that the address does not name
            system, base = self.tried(lambda: fs.FileSystem.from_uri(uri))
            if system.type_name == "s3":
                system = _impatient(system)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, ValueError) as error:
            raise UserError(f"--results {self.uri}: {first_line(error)[:300]}", EXAMPLE) from error
        return system, base.rstrip("/")

    @property
    def filesystem(self) -> Any:
        """The pyarrow file system of this address."""
        return self._place[0]

    def path(self, name: str) -> str:
        """The path of a file or folder in the file system."""
        return f"{self._place[1]}/{name}"

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is no such file."""

        def read() -> bytes:
            with self.filesystem.open_input_stream(self.path(name)) as file:
                content: bytes = file.read()
                return content

        try:
            return self.tried(read)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Put a file there; others see it when it is complete."""

        def write(path: str) -> None:
            with self.filesystem.open_output_stream(path) as file:
                file.write(content)

        self._put(name, write)

    def send(self, local: Path, name: str) -> None:
        """Put a copy of a local file there; others see it when it is complete, or when its writing is interrupted."""

        def write(path: str) -> None:
            with local.open("rb") as source, self.filesystem.open_output_stream(path) as file:
                shutil.copyfileobj(source, file, 4_000_000)

        self._put(name, write)

    def fetch(self, name: str, local: Path) -> None:
        """Copy a file to this machine, whole or not at all; FileNotFoundError if there is none."""
        local.parent.mkdir(parents=True, exist_ok=True)
        scratch = local.with_name(f".{uuid.uuid4().hex}-{local.name}")

        def copy() -> None:
            with self.filesystem.open_input_stream(self.path(name)) as source, scratch.open("wb") as file:
                shutil.copyfileobj(source, file, 4_000_000)

        try:
            self.tried(copy)
            scratch.replace(local)
        finally:
            scratch.unlink(missing_ok=True)

    def sizes(self, folder: str) -> dict[str, int]:
        """The files below a folder, by their names relative to it, with sizes in bytes; none without the folder."""
        from pyarrow.fs import FileSelector, FileType

        path = self.path(folder)
        selector = FileSelector(path, allow_not_found=True, recursive=True)
        found = self.tried(lambda: self.filesystem.get_file_info(selector))
        return {file.path.removeprefix(f"{path}/"): file.size for file in found if file.type == FileType.File}

    def names(self, folder: str) -> list[str]:
        """What lies in a folder, sorted; nothing if it is not there."""
        from pyarrow.fs import FileSelector

        selector = FileSelector(self.path(folder), allow_not_found=True)
        return sorted(file.base_name for file in self.tried(lambda: self.filesystem.get_file_info(selector)))

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with suppress(FileNotFoundError):
            self.tried(lambda: self.filesystem.delete_file(self.path(name)))

    def delete_folder(self, folder: str) -> None:
        """Delete a folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self.tried(lambda: self.filesystem.delete_dir(self.path(folder)))

    def send_folder(self, local: Path, folder: str, names: Iterable[str]) -> None:
        """Put copies of these files of a local folder there, one after the other."""
        for name in names:
            self.send(local / name, f"{folder}/{name}")

    def _put(self, name: str, write: Callable[[str], None]) -> None:
        path = self.path(name)

        def put() -> None:
            if self.filesystem.type_name in ATOMIC_PUT:
                write(path)
                return
            self.filesystem.create_dir(path.rpartition("/")[0], recursive=True)
            scratch = f"{path}.{uuid.uuid4().hex}"
            write(scratch)
            self.filesystem.move(scratch, path)

        self.tried(put)

    def tried(self, do: Callable[[], Answer]) -> Answer:
        """What it answers, asked again for ANSWER_TIMEOUT_S after it did not; FileNotFoundError is an answer.

        What goes before the first failure does not count: a long transfer is no silence.
        """
        until, number = math.inf, 0
        while True:
            try:
                return do()
            except FileNotFoundError:
                raise
            except OSError as error:
                until = min(until, time.monotonic() + ANSWER_TIMEOUT_S)
                refused = isinstance(error, PermissionError) or any(word in str(error) for word in REFUSALS)
                if error.errno in LOCAL:
                    raise
                if refused or time.monotonic() > until:
                    how = "refuses" if refused else f"has not answered for {ANSWER_TIMEOUT_S:.0f} s"
                    raise StorageError(
                        f"{self.uri} {how}: {first_line(error)[:300]}",
                        "finished stages are kept; the same command goes on once the storage answers",
                    ) from error
                notify(f"{self.uri.partition('?')[0]} does not answer, trying again: {first_line(error)[:300]}")
            time.sleep(WAITS_S[min(number, len(WAITS_S) - 1)])
            number += 1


def _impatient(system: Any) -> Any:
    """The same S3 file system, with short waits for what is silent: we ourselves ask again, and say so."""
    from pyarrow import fs

    _, (options,) = system.__reduce__()  # all that it found, in the address and in the environment
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
    times = {"connect_timeout": REQUEST_TIMEOUT_S, "request_timeout": REQUEST_TIMEOUT_S}
    return fs.S3FileSystem(**{**options, **times, "retry_strategy": retries})
