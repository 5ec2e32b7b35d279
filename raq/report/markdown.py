"""Markdown of texts that come from records and strangers: nothing of them is markup. Neither torch nor ray."""

import re
from collections.abc import Sequence

from raq.report.terminal import printable

SPECIAL = re.compile(r"([\\`*_\[\]<>|~&$@]|(?<=www)\.|:(?=//)|^[#+\-=>])")  # addresses would become links
FENCE = "`"


def escaped(text: object) -> str:
    """The text in one line, such that Markdown shows it as it is."""
    return SPECIAL.sub(r"\\\1", printable(str(text)))


def code(text: object) -> str:
    """The text in one line, as code."""
    shown = printable(str(text))
    fence = FENCE * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith(FENCE) or shown.endswith(FENCE) else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def block(text: str, language: str = "") -> list[str]:
    """Lines of code as a block; each is made printable."""
    lines = [printable(line) for line in text.split("\n")]
    fence = FENCE * max(3, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
    return [f"{fence}{language}", *lines, fence]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table; its cells are Markdown already, of one line each."""
    return [
        f"| {' | '.join(headings)} |",
        f"|{'---|' * len(headings)}",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
