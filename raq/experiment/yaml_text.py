"""YAML text to plain values, with the line of every key; nothing that runs code or grows without bound.

Built on PyYAML's safe loader. Refused: tags, aliases (and so alias bombs), duplicate keys, several
documents, binary and oversized files. `1e-3` is a number, as in YAML 1.2.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from raq.errors import UserError

MAX_BYTES = 256_000
MAX_DEPTH = 50
Location = tuple[int | str, ...]


# dates, and numbers of base 60 (1:30), which YAML 1.2 dropped: the numbers are defined anew below
NOT_RESOLVED = tuple(f"tag:yaml.org,2002:{name}" for name in ("timestamp", "int", "float"))


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, with YAML 1.2's numbers and without dates (a name such as 2026-01-01 is text)."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in NOT_RESOLVED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\d[\d_]*\.[\d_]*(?:[eE][-+]?\d+)?|\.\d[\d_]*(?:[eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+)"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x[0-9a-fA-F_]+|0o?[0-7_]+|0b[01_]+)$"),
    list("-+0123456789"),
)


def read_yaml_text(path: Path) -> tuple[Any, dict[Location, str]]:
    """The value in the file and, for each key's location, the place to name in an error ("file:line").

    Raises UserError if the file cannot be read or is not plain YAML.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be read: not a file", "give the path of an experiment's YAML file")
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}", "give the path of an experiment's YAML file"
        ) from None
    if raw is None:
        raise UserError(f"{path}: larger than {MAX_BYTES} bytes, so not an experiment", "give a YAML file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: a binary file, not YAML text", "give an experiment's YAML file") from None
    lines: dict[Location, str] = {}
    return _parse(text, str(path), lines), lines


def read_yaml_value(text: str, source: str) -> Any:
    """One value written as YAML, such as "1e-3" or "[1, 2]"; `source` is named in errors."""
    if len(text) > MAX_BYTES:
        raise UserError(f"{source}: longer than {MAX_BYTES} characters", "write a shorter value")
    return _parse(text, source, {})


def _place(source: str, part: yaml.Event | yaml.Node) -> str:
    return f"{source}:{part.start_mark.line + 1}" if part.start_mark is not None else source


def _parse(text: str, source: str, lines: dict[Location, str]) -> Any:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(
                    f"{_place(source, event)}: nested deeper than {MAX_DEPTH} levels", "correct the file there"
                )
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{_place(source, event)}: aliases (*name) are not allowed", "write the value out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise UserError(f"{_place(source, event)}: tags ({tag}) are not allowed", "write a plain value")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return None if node is None else _construct(loader, node, source, lines, ())
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "special characters are not allowed"
        raise UserError(f"{source}{line}: not valid YAML: {problem}", "correct the file there") from None
    except (ValueError, RecursionError, OverflowError) as error:
        raise UserError(f"{source}: not valid YAML: {error}", "correct the file") from None


def _construct(loader: yaml.SafeLoader, node: yaml.Node, source: str, lines: dict[Location, str], at: Location) -> Any:
    """The value of a node; its children's places go into `lines`."""
    place = _place(source, node)
    if len(at) > MAX_DEPTH:
        raise UserError(f"{place}: nested deeper than {MAX_DEPTH} levels", "correct the file there")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = loader.construct_object(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            key_place = _place(source, key_node)
            if not isinstance(key, str):
                raise UserError(f"{key_place}: a key must be text", "correct the file there")
            if key in mapping:
                raise UserError(f"{key_place}: the key {key!r} is there twice", "remove one of the two")
            lines[(*at, key)] = key_place
            mapping[key] = _construct(loader, value_node, source, lines, (*at, key))
        return mapping
    if isinstance(node, yaml.SequenceNode):
        values = []
        for n, child in enumerate(node.value):
            lines[(*at, n)] = _place(source, child)
            values.append(_construct(loader, child, source, lines, (*at, n)))
        return values
    return loader.construct_object(node)
