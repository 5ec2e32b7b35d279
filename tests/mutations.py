"""What strangers and accidents make of files: mutations of YAML text, of records and of artifacts, for hypothesis."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

ESCAPE = "\x1b[31mred\x1b]0;title\x07\u202e[bold]x[/nothing]"
ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**70, -(2**70), 10**400, 1e308, -1e308, 1e-300, math.nan, math.inf, "", "x" * 5000,
    ESCAPE, "fp32/eager", "../../etc/passwd", "nan", [], {}, [[]], [None], {"a": 1}, [1, 2, 3], [1.0, ESCAPE],
    {ESCAPE: ESCAPE},
]  # fmt: skip


PIECES = (
    "\t", "  ", ": ", "- ", "{", "}", "[", "]", "&a ", "*a", "!!python/object:os.system ", "<<: ", "'", '"', "#", "|",
    ">", "%", "@", "\0", "\x1b[2J", "\ufeff", "é" * 50, "9" * 400, "1e999", ".nan", "null", "~", "- " * 60, "[" * 60,
    "x" * 3000, "\n", "---\n", "...\n", "\u202e", "seed", "qat", "sweep: {qat: {lr: {unif@orm: [1, 2]}}}",
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path in nested dicts and lists; of a long list its first, middle and last entries."""
    found = [at] if at else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*at, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) // 2, len(value) - 1} if value else ()):
            found += places(value[index], (*at, index))
    return found


@st.composite
def mutated(draw: st.DrawFn, value: Any) -> Any:
    """A copy of a nested value with one place changed, removed, added to, or repeated."""
    found = copy.deepcopy(value)
    at = draw(st.sampled_from(places(found)))
    owner = found
    for part in at[:-1]:
        owner = owner[part]
    how = draw(st.sampled_from(("value", "value", "value", "remove", "add", "double")))
    odd = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    if how == "remove":
        del owner[at[-1]]
    elif how == "add" and isinstance(owner, dict):
        owner[draw(st.sampled_from(("added", ESCAPE, "evaluate/nothing", "evaluate/mixed-9")))] = odd
    elif how == "double" and isinstance(owner, list):
        owner.insert(0, copy.deepcopy(owner[at[-1]]))
    else:
        owner[at[-1]] = odd
    return found


@st.composite
def mutated_text(draw: st.DrawFn, text: str) -> str:
    """A text with pieces cut out, doubled, replaced or put in, once to four times."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(text)))
        length = draw(st.integers(0, 12))
        new = draw(st.sampled_from((*PIECES, "", text[at : at + length] * 2)))
        text = text[:at] + new + text[at + draw(st.sampled_from((0, 0, length))) :]
    return text


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut short, with some of them changed, or with a piece put in."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(found) - 1))
        how = draw(st.sampled_from(("flip", "flip", "zero", "fill", "insert", "cut")))
        if how == "flip":
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "zero":
            found[at : at + 8] = bytes(len(found[at : at + 8]))
        elif how == "fill":
            found[at : at + 8] = b"\xff" * len(found[at : at + 8])
        elif how == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=40))
        else:
            del found[max(1, at) :]
    return bytes(found)


def as_json(value: Any) -> str:
    """As a record's file might hold it, NaN and Infinity included."""
    return json.dumps(value, indent=1)


def every_key(stores: dict[str, Path]) -> Iterator[tuple[Path, Path, tuple[Any, ...], str]]:
    """Every key of every kind of record in these results folders, to be left out or to be null, once.

    (folder, file, path of the key, "remove" or "null"); of a list its first entry's keys.
    """
    seen = set()
    for root in stores.values():
        for file in sorted([*root.glob("stages/*/record.json"), *root.glob("runs/*/run.json")]):
            kind = file.parent.name.partition("-")[0] if file.name == "record.json" else "run"
            for at in _keys(json.loads(file.read_text())):
                unread = at[0] in ("seal", "inputs", "input_ids") or (at[0] == "settings" and kind != "run")
                name = (kind, *("*" if isinstance(part, int) else part for part in at))
                if not unread and name not in seen:
                    seen.add(name)
                    yield from ((root, file, at, how) for how in ("remove", "null"))


def _keys(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in list(value.items()) if isinstance(value, dict) else enumerate(value[:1]):
        if isinstance(value, dict):
            yield (*at, key)
        if isinstance(inner, dict | list) and len(at) < 4:
            yield from _keys(inner, (*at, key))


def without(value: Any, at: tuple[Any, ...], how: str) -> Any:
    """The value with the key at this path left out, or null; in place."""
    owner = value
    for part in at[:-1]:
        owner = owner[part]
    if how == "remove":
        del owner[at[-1]]
    else:
        owner[at[-1]] = None
    return value
