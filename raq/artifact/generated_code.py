"""What an AOTInductor package says that it runs, read from the C++ that it carries, without executing any of it.

The package is a zip: native code, the C++ that it was compiled from, and metadata. The C++ names every constant
with its type and shape, and every call of a library kernel with its weight and output. The kernels that it calls must
be those that the native code imports. That finds mistakes and files that were mixed up, not a determined forger: that
the library was compiled from this C++ cannot be read. What really runs, executed.py shows.
"""

import json
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from raq.artifact.cpp import MAX_SOURCE_BYTES, Deadline, code_lines
from raq.artifact.elf import imported_symbols
from raq.artifact.metadata import METADATA_KEY
from raq.artifact.wrapper_code import FLOAT, INTEGER, KERNEL, Constant, KernelCall, read_calls, read_constants
from raq.errors import StageError
from raq.store.files import refuse_constant

ZIP_MAGIC = b"PK\x03\x04"
ENGINE = "model.engine"  # what a zip of TensorRT's begins with
MAX_HEADER_BYTES = 30 + 256
# what no honest package exceeds; a reader of strangers' files must end
MAX_METADATA_BYTES, MAX_TIMES_FILE, MAX_ENTRIES = 1_000_000, 4, 10_000
DAMAGE = (
    OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, RecursionError, ValueError,
    KeyError, IndexError, TypeError, AttributeError, OverflowError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class GeneratedCode:
    """A package's constants, kernel calls in order, and metadata.

    Under `METADATA_KEY` of the metadata stands what raq wrote there: candidate, model, input, normalisation, torch.
    """

    constants: list[Constant]
    calls: list[KernelCall]
    metadata: dict[str, Any]
    native_bytes: int
    file_bytes: int


def is_package(path: Path) -> bool:
    """Whether a file begins as a package does, which is a zip, and not with an engine of TensorRT."""
    return _first_member(path) not in (None, ENGINE)


def holds_engine(path: Path) -> bool:
    """Whether a file is a zip that begins with an engine of TensorRT."""
    return _first_member(path) == ENGINE


def _first_member(path: Path) -> str | None:
    """The name of the first file in a zip, by its local header; None if it does not begin as a zip."""
    try:
        with path.open("rb") as file:
            start = file.read(MAX_HEADER_BYTES)
    except OSError:
        return None
    if not start.startswith(ZIP_MAGIC):
        return None
    length = int.from_bytes(start[26:28], "little")
    return start[30 : 30 + length].decode(errors="replace")


def read_package(path: Path) -> GeneratedCode:
    """Read a package; nothing of it is loaded as code. Bounded in memory, and in time (some 10 s at most).

    Raises StageError if the file is damaged, is no such package, or its C++ and its native code do not belong together.
    """
    deadline = Deadline()
    try:
        with zipfile.ZipFile(path) as package:
            entries = package_entries(package, path)
            metadata = _metadata(package, entries)
            sources = {
                name.removesuffix(".cpp"): entry for name, entry in entries.items() if name.endswith(".wrapper.cpp")
            }
            binaries = {name.removesuffix(".so"): entry for name, entry in entries.items() if name.endswith(".so")}
            if not sources or set(sources) != set(binaries):
                raise ValueError("it does not hold one binary for each generated C++ file")
            constants: list[Constant] = []
            calls: list[KernelCall] = []
            for name, entry in sources.items():
                if entry.file_size > MAX_SOURCE_BYTES:
                    raise ValueError(f"{entry.file_size / 1e6:.0f} MB of C++")
                lines = list(code_lines(package.read(entry), deadline))
                own = read_constants(lines)
                called = read_calls(lines, {constant.name: constant for constant in own}, deadline)
                with tempfile.TemporaryFile() as library:
                    _unpack(package, binaries[name], library, deadline)
                    _match_binary(called, imported_symbols(library, deadline))
                constants += own
                calls += called
            _read_rest(package, entries, deadline)
    except DAMAGE as error:
        raise _unreadable(path, error) from None
    native = sum(entry.file_size for entry in binaries.values())
    return GeneratedCode(constants, calls, metadata, native, path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    """A package's metadata alone; StageError if it is no package."""
    try:
        with zipfile.ZipFile(path) as package:
            return _metadata(package, package_entries(package, path))
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: BaseException) -> StageError:
    text = type(error).__name__ if isinstance(error, (KeyError, IndexError, MemoryError)) else str(error)[:200]
    return StageError(f"{path}: not a readable package: {text}", "lower it again")


def package_entries(package: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The package's files by name."""
    entries = package.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"it holds {len(entries)} files")
    if sum(entry.file_size for entry in entries) > MAX_TIMES_FILE * path.stat().st_size + MAX_METADATA_BYTES:
        raise ValueError("it unpacks to many times its size")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("it holds two files of one name")
    return {entry.filename: entry for entry in entries}


def _unpack(package: zipfile.ZipFile, entry: zipfile.ZipInfo, target: IO[bytes] | None, deadline: Deadline) -> None:
    """Read an entry to its end, which checks its checksum; into `target`, if given."""
    with package.open(entry) as source:
        while chunk := source.read(1 << 20):
            deadline.check()
            if target is not None:
                target.write(chunk)


def _read_rest(package: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], deadline: Deadline) -> None:
    """Read what nothing is read out of, for its checksums: an artifact is whole or it is not."""
    for name, entry in entries.items():
        if not name.endswith((".wrapper.cpp", ".so")) and not _is_metadata(name):
            _unpack(package, entry, None, deadline)


def _is_metadata(name: str) -> bool:
    return name.endswith(".wrapper_metadata.json")


def _metadata(package: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        if _is_metadata(name):
            if entry.file_size > MAX_METADATA_BYTES:
                raise ValueError("its metadata is too large")
            found = json.loads(package.read(entry), parse_constant=refuse_constant)
    if not isinstance(found, dict):
        raise ValueError("its metadata is no mapping")
    if METADATA_KEY in found:
        found[METADATA_KEY] = json.loads(found[METADATA_KEY], parse_constant=refuse_constant)
        if not isinstance(found[METADATA_KEY], dict):
            raise ValueError("its metadata is no mapping")
    return found


def _match_binary(calls: list[KernelCall], imported: set[str] | None) -> None:
    """ValueError unless the binary imports the kernels that the C++ calls, and no other of their kind.

    imported: None for a library that is no ELF file, whose imports are not known.
    """
    if imported is None:
        return
    known = {name for name in imported if KERNEL.match(f"{name}(") and (INTEGER.search(name) or FLOAT.search(name))}
    called = {call.kernel for call in calls if call.integer or FLOAT.search(call.kernel)}
    if called != known:
        raise ValueError(
            "its C++ is not what its native code was compiled from: "
            f"only the C++ calls {', '.join(sorted(called - known)) or 'nothing more'}, "
            f"only the native code {', '.join(sorted(known - called)) or 'nothing more'}"
        )
