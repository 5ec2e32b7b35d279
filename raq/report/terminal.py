"""The terminal itself: a console that takes nothing for markup, and text without what moves a cursor.

What is printed comes from records and from strangers' files, so nothing of it may be an escape sequence, a control
character, a mark that reverses the direction of writing, or rich's own markup. Neither torch nor ray.
"""

from collections.abc import Mapping
from typing import Any, TextIO, TypeVar, cast

from rich.console import Console

Value = TypeVar("Value")


def plain_console(file: TextIO | None = None, *, stderr: bool = False) -> Console:
    """A console that prints strings as they are: no markup, no emoji codes, no highlighting."""
    return Console(file=file, stderr=stderr, markup=False, emoji=False, highlight=False)


def printable(text: str) -> str:
    """The text in one line, a question mark in place of every character that is not printed as itself."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)


def clean(value: Value) -> Value:
    """A plain value with every string in it made printable, keys of mappings too."""
    found: Any = value  # of the same type
    if isinstance(value, str):
        found = printable(value)
    elif isinstance(value, Mapping):
        found = {clean(key): clean(inner) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        found = type(value)(clean(inner) for inner in value)
    return cast(Value, found)


def say(console: Console, text: str, style: str | None = None, *, whole: bool = False) -> None:
    """Print a line, made printable; on a terminal broken between words, unless it is to stay whole, as a path is."""
    unbroken = whole or not console.is_terminal
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=unbroken)


def paragraph(console: Console, text: str, style: str | None = None) -> None:
    """Print text, made printable, broken between words at the width of the console."""
    console.print(printable(text), style=style, markup=False, highlight=False)
