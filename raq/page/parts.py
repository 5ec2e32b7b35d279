"""What a page is made of: sections of figures, tables and sentences. Neither torch nor ray."""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Number = float | int | None


@dataclass(frozen=True)
class Cell:
    """A table's cell. text: as shown; sort: what its column is sorted by, None: the text; mark: a class of the
    style."""

    text: str
    sort: Number = None
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table that is sorted by a click. numbers: by column, whether it holds numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def numbers(self) -> list[bool]:
        """By column, whether its cells are sorted as numbers, and so stand at the right."""
        return [any(row[at].sort is not None for row in self.rows) for at in range(len(self.columns))]


@dataclass(frozen=True)
class Figure:
    """A plot: what Plotly draws. says: in words, for those who do not see it."""

    name: str
    says: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    height: int = 380


@dataclass(frozen=True)
class Code:
    """Lines to copy."""

    text: str


@dataclass(frozen=True)
class Gallery:
    """Small pictures. pictures: PNG files, each with what it shows in words."""

    caption: str
    pictures: Sequence[tuple[bytes, str]]

    @property
    def addresses(self) -> list[tuple[str, str]]:
        """Each as an address that holds it whole, with its words."""
        return [(f"data:image/png;base64,{base64.b64encode(png).decode()}", says) for png, says in self.pictures]


@dataclass(frozen=True)
class Section:
    """A part of the page. how: how to read it, at most three sentences."""

    name: str
    title: str
    how: Sequence[str] = ()
    parts: Sequence[Figure | Table | Code | Gallery | Sequence[str]] = field(default_factory=tuple)
    """Figures, tables, lines to copy, pictures, and lists of sentences, in order."""
    is_open: bool = True


@dataclass(frozen=True)
class Page:
    """What one HTML file shows.

    facts: a line below its heading; answer: what it comes to; is_good: whether that is a decision; warnings: what makes
    it doubtful.
    """

    title: str
    heading: str
    facts: str
    answer: str
    is_good: bool
    sections: Sequence[Section]
    warnings: Sequence[str] = ()


def name_of(*parts: object) -> str:
    """A figure's name, which an address can end in; other parts have another name.

    Letters, digits, and what stands for all others, then with some digits of a digest.
    """
    return "-".join(_name_of(str(part)) for part in parts)


def _name_of(part: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.]", "_", part)
    return plain if plain == part else f"{plain[:80]}.{hashlib.sha256(part.encode()).hexdigest()[:8]}"


def shown(value: Number, digits: str = ".2f", missing: str = "") -> str:
    """A number as text."""
    return missing if value is None else f"{value:{digits}}"


def number(value: Number, digits: str = ".2f", mark: str = "") -> Cell:
    """A cell of a number."""
    return Cell(shown(value, digits), value, mark)


def interval(bounds: Sequence[float] | None, digits: str = ".2f") -> Cell:
    """A cell of an interval."""
    return Cell("" if bounds is None else f"{bounds[0]:{digits}} to {bounds[1]:{digits}}", None, "interval")
