"""Keys of older versions: still read, with a line that says what they are called now. Neither torch nor ray."""

import sys
from collections.abc import MutableMapping
from functools import cache
from typing import Any

from raq.errors import UserError
from raq.experiment.yaml_text import Location

RENAMED: dict[tuple[str, ...], str] = {
    ("data", "validation"): "validation_fraction",
    ("sweep", "layers", "most"): "max_float_layers",
}


def spelled_as_today(parts: tuple[str, ...]) -> tuple[str, ...]:
    """A key's parts as they are spelled today; says once a process that it was spelled otherwise."""
    if parts not in RENAMED:
        return parts
    now = (*parts[:-1], RENAMED[parts])
    say_renamed(".".join(parts), ".".join(now))
    return now


@cache
def say_renamed(old: str, new: str) -> None:
    """Say, once a process, that a key has another name now."""
    sys.stderr.write(f"raq: {old} is now called {new}; the old name is still read\n")


def rename_keys(tree: MutableMapping[str, Any], lines: dict[Location, str]) -> None:
    """Rename the keys of older versions in an experiment's tree, and where they stand in the file.

    Raises UserError if both names of a key are given.
    """
    for parts in RENAMED:
        section: Any = tree
        for part in parts[:-1]:
            section = section.get(part) if isinstance(section, dict) else None
        if not isinstance(section, dict) or parts[-1] not in section:
            continue
        now = spelled_as_today(parts)
        if now[-1] in section:
            raise UserError(
                f"{'.'.join(parts)} and {'.'.join(now)} are both given, and are the same key", f"keep {now[-1]}"
            )
        section[now[-1]] = section.pop(parts[-1])
        for place in [place for place in lines if place[: len(parts)] == parts]:
            lines[(*now, *place[len(parts) :])] = lines.pop(place)
