"""The experiment's schema as JSON Schema, for editors, and as a list of keys, for the documentation.

Both are made from the pydantic models: their types, defaults and the docstrings under their fields. Neither torch nor
ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raq.experiment.schema import Experiment

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FROM_RECIPE = "the recipe's"
NEED_NO_LIST = ("mode",)  # keys of ptq that take one value as well as a list of them
Schema = dict[str, Any]


@dataclass(frozen=True)
class Key:
    """A key of the experiment. path: with dots; default: as YAML writes it, empty where the key must be written."""

    path: str
    allowed: str
    default: str
    meaning: str


def json_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of an experiment's file.

    What a validator fills in before the types are checked is not required here: the keys of a recipe. Where the file
    may nest keys that a model has flat (`sweep.ptq.calibration`), both spellings are allowed.
    """
    schema = Experiment.model_json_schema()
    for name, definition in schema["$defs"].items():
        definition.pop("required", None)
        if name == "PtqSweep":
            properties = definition["properties"]
            nested = {
                key.partition(".")[2]: value for key, value in properties.items() if key.startswith("calibration.")
            }
            properties["calibration"] = {"type": "object", "additionalProperties": False, "properties": nested}
        if name == "Ptq":
            properties = definition["properties"]
            properties |= {key: _or_listed(entry) for key, entry in properties.items() if key in NEED_NO_LIST}
        if name == "Metric":  # its name alone stands for it
            schema["properties"]["metric"] = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Metric"}]}
    return {"$schema": DIALECT, **schema}


def _or_listed(entry: Schema) -> Schema:
    """What takes a list, and one of its values alone too."""
    kept = {key: value for key, value in entry.items() if key in ("default", "description", "title")}
    listed = {key: value for key, value in entry.items() if key not in kept}
    return {**kept, "anyOf": [entry["items"], listed]}


def every_key() -> list[Key]:
    """Every key of the experiment, in the order of the schema; of a part that may be null, the part too."""
    schema = json_schema()
    return list(_keys(schema, schema["$defs"], ""))


def _keys(part: Schema, definitions: dict[str, Schema], prefix: str) -> Iterator[Key]:
    for name, entry in part["properties"].items():
        path = f"{prefix}{name}"
        section = _section(entry, definitions)
        if section is None:
            yield Key(path, _allowed(entry, definitions), _default(entry, part, name), _meaning(entry))
        elif not name.startswith("calibration") or prefix != "sweep.ptq.":  # else it is there with dots
            if any(option.get("type") == "null" for option in entry.get("anyOf", ())):
                null = entry.get("default") is None
                words = _meaning(entry) or " ".join(section.get("description", "").split())
                yield Key(path, "a section, null", "null" if null else "as below", words)
            yield from _keys(section, definitions, f"{path}.")


def _section(entry: Schema, definitions: dict[str, Schema]) -> Schema | None:
    """The section that a key holds; None if it holds a value."""
    for option in (entry, *entry.get("anyOf", ()), *entry.get("allOf", ())):
        if "$ref" in option:
            return definitions[option["$ref"].rpartition("/")[2]]
    return entry if "properties" in entry else None


def _allowed(entry: Schema, definitions: dict[str, Schema]) -> str:
    """The values that a key takes, in words."""
    options = entry.get("anyOf") or entry.get("oneOf")
    if options:
        return ", or ".join(dict.fromkeys(_allowed(option, definitions) for option in options))
    if "$ref" in entry:  # the one section that is a value: a range to draw from
        return " or ".join(
            f"{{{key}: [low, high]}}" for key in definitions[entry["$ref"].rpartition("/")[2]]["properties"]
        )
    if "enum" in entry or "const" in entry:
        return ", ".join(entry.get("enum", [entry.get("const")]))
    kind = entry.get("type")
    if kind == "array":
        fixed = entry.get("prefixItems")
        count = f" {len(fixed)}" if fixed else ""
        items = fixed[0] if fixed else entry["items"]
        return "[]" if entry.get("maxItems") == 0 else f"a list of{count}: {_allowed(items, definitions)}"
    words = {"boolean": "true, false", "string": "text", "null": "null", "object": "names with values"}
    return words.get(str(kind)) or _number(entry)


def _number(entry: Schema) -> str:
    words = "a whole number" if entry["type"] == "integer" else "a number"
    low, above = entry.get("minimum"), entry.get("exclusiveMinimum")
    high, below = entry.get("maximum"), entry.get("exclusiveMaximum")
    if low is not None:
        words += f" from {low:g}"
    elif above is not None:
        words += f" above {above:g}"
    if high is not None and high < 1e6:
        words += f" to {high:g}"
    elif below is not None and below < 1e6:
        words += f", below {below:g}"
    return words


def _default(entry: Schema, part: Schema, name: str) -> str:
    if "default" not in entry:
        return FROM_RECIPE if "recipe" in part["properties"] else "{}" if entry.get("type") == "object" else ""
    return _yaml(entry["default"])


def _yaml(value: Any) -> str:
    """A default as YAML writes it in a line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meaning(entry: Schema) -> str:
    return " ".join(str(entry.get("description", "")).split())
