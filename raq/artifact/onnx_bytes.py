"""The fields that an ONNX file consists of, by their place alone: what to know of a file before it is read.

An ONNX file is a protobuf message (ModelProto of onnx.proto3): fields, each a key (number and kind) and a value. A file
of gigabytes is looked over in a moment, as values are passed over by their length.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO

MODEL_GRAPH, MODEL_METADATA = 7, 14  # of ModelProto; metadata are entries of two texts
VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
MAX_FIELD, MAX_FIELDS, MAX_ENTRY_BYTES = (
    25,
    10_000,
    10_000_000,
)  # of ModelProto: its numbers, and what honest files have


def fields(path: Path) -> Iterator[tuple[int, int, int]]:
    """Number, place and bytes of each value at the file's top; ValueError if it is no such message."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(MAX_FIELDS):
            if file.tell() == size:
                return
            key = _varint(file)
            number, kind = key >> 3, key & 7
            if not 0 < number <= MAX_FIELD:
                raise ValueError(f"it has a field {number}")
            if kind == VARINT:
                at = file.tell()
                _varint(file)
                yield number, at, file.tell() - at
                continue
            if kind not in (FIXED_64, BYTES, FIXED_32):
                raise ValueError(f"it has a value of kind {kind}")
            count = {FIXED_64: 8, FIXED_32: 4}.get(kind) or _varint(file)
            at = file.tell()
            if at + count > size:
                raise ValueError("it is shorter than it says")
            yield number, at, count
            file.seek(at + count)
    raise ValueError(f"it has more than {MAX_FIELDS} fields")


def text_entry(path: Path, at: int, size: int) -> tuple[str, str]:
    """The two texts of a StringStringEntryProto at a place; ValueError if it is none."""
    if size > MAX_ENTRY_BYTES:
        raise ValueError("its metadata is too large")
    with path.open("rb") as file:
        file.seek(at)
        found = {1: "", 2: ""}
        while file.tell() < at + size:
            key = _varint(file)
            count = _varint(file)
            if key & 7 != BYTES or key >> 3 not in found or file.tell() + count > at + size:
                raise ValueError("an entry of its metadata is damaged")
            found[key >> 3] = file.read(count).decode()
    return found[1], found[2]


def _varint(file: IO[bytes]) -> int:
    """A number in groups of seven bits, the lowest first."""
    found = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError("it ends in the middle of a number")
        found |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return found
    raise ValueError("a number is longer than any")
