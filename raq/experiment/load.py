"""From an experiment's file and overrides to a frozen `Experiment`, or to one line that says what is wrong with them.

That line names the key, its place in the file, what is allowed and what to do next. Imports neither torch nor ray.
"""

import difflib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raq.errors import UserError
from raq.experiment.fields import INCLUDED
from raq.experiment.schema import Experiment
from raq.experiment.spelling import rename_keys, spelled_as_today
from raq.experiment.yaml_text import MAX_DEPTH, Location, read_yaml_text, read_yaml_value

MAX_SHOWN = 600
IN_PYTHON = "the experiment given"
Given = Path | Mapping[str, Any] | Experiment
PATHS = (("data", "root"), ("model", "weights"))


def load_experiment(given: Given, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment that is given, with `--set` overrides such as "train.epochs=1" applied.

    given: a YAML file, or what stands in one as a mapping, or an experiment. Relative paths (data.root, model.weights)
    come back absolute: a file's against its folder, others against the working directory.
    Raises UserError for anything that is not a valid experiment.
    """
    try:
        return _loaded(given, overrides)
    except UserError as error:
        raise UserError(_shortened(error.message), _shortened(error.hint)) from error.__cause__


def as_given(value: Any) -> Given:
    """What Python was given as one of those: a name is a file's. UserError for anything else."""
    if isinstance(value, str | os.PathLike):
        return Path(value)
    if isinstance(value, Mapping | Experiment):
        return value
    raise UserError(
        f"an experiment cannot be a {type(value).__name__}", "give a YAML file's path, a mapping or an Experiment"
    )


def _loaded(given: Given, overrides: Sequence[str]) -> Experiment:
    if isinstance(given, Path):
        place, folder = str(given), given.resolve().parent
        tree, lines = read_yaml_text(given)
    else:
        place, folder = IN_PYTHON, Path.cwd()
        plain = given.model_dump(mode="json", by_alias=True) if isinstance(given, Experiment) else given
        tree, lines = read_yaml_value(_as_yaml(plain), IN_PYTHON), {}
    if not isinstance(tree, dict):
        raise UserError(
            f"{place}: an experiment is a mapping of keys, this is {_kind(tree)}",
            "start with 'name: my-experiment'; see experiments/quickstart.yaml",
        )
    rename_keys(tree, lines)
    if isinstance(overrides, str) or not all(isinstance(one, str) for one in overrides or ()):
        raise UserError(f"overrides are {_short(overrides)}", 'give a list of texts, such as ["train.epochs=1"]')
    for override in overrides or ():
        _apply_override(tree, lines, override)
    rename_keys(tree, lines)
    try:
        experiment = Experiment.model_validate(tree)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), tree, lines, place) from None
    return _with_absolute_paths(experiment, folder)


def _as_yaml(plain: Any) -> str:
    """The text that says the same, of plain values: JSON, which the reader of YAML takes."""
    try:
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{IN_PYTHON}: not made of plain values: {error}",
            "give what a file can hold: mappings, lists, numbers, text",
        ) from None


def as_in_file(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record as a file spells them: some keys have other names in Python.

    Those of an older raq, which this one does not take, stay as they are.
    """
    try:
        experiment = Experiment.model_validate(settings, by_name=True, by_alias=True)
    except ValidationError:
        return dict(settings)
    return experiment.model_dump(mode="json", by_alias=True)


def _with_absolute_paths(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with data.root and model.weights made absolute against `folder`."""
    data, model = experiment.data, experiment.model
    if data.root is not None:
        data = data.model_copy(update={"root": _absolute(data.root, folder, "data.root")})
    if model.weights not in (None, INCLUDED):
        model = model.model_copy(update={"weights": _absolute(model.weights, folder, "model.weights")})
    prefix, _, place = model.name.partition(":")
    if prefix == "transformers" and (folder / place).is_dir():  # else a name in a cache
        model = model.model_copy(update={"name": f"{prefix}:{_absolute(place, folder, 'model.name')}"})
    return experiment.model_copy(update={"data": data, "model": model})


def _absolute(path: str, folder: Path, key: str) -> str:
    try:
        return str((folder / Path(path).expanduser()).resolve())
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"{key} is {_short(path)}, which is no path: {error}", f"correct {key}") from None


def _apply_override(tree: dict[str, Any], lines: dict[Location, str], override: str) -> None:
    """Write one "a.b=value" into the tree; the value is read as YAML."""
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts) or len(parts) > MAX_DEPTH:
        raise UserError(f"--set {_short(override)} is not KEY=VALUE", "write it like --set train.epochs=1")
    parts = spelled_as_today(parts)
    at = tree
    for part in parts[:-1]:
        if at.get(part) is None:
            at[part] = {}
        if not isinstance(at[part], dict):
            raise UserError(
                f"--set {_short(override)}: {_short(part)} is not a section", "see the keys in the experiment's file"
            )
        at = at[part]
    value = read_yaml_value(text, f"--set {_shortened(override)}")
    if (
        parts in PATHS and isinstance(value, str) and value != INCLUDED
    ):  # on the command line a path is relative to where one stands
        value = _absolute(value, Path.cwd(), f"--set {key}")
    at[parts[-1]] = value
    lines[parts] = f"--set {_shortened(override)}"


def _explain(errors: list[ErrorDetails], tree: dict[str, Any], lines: dict[Location, str], source: str) -> UserError:
    """The first problem of a validation, as one line with the place in the file."""
    where = _in_tree(errors[0]["loc"], tree)
    key = ".".join(str(part) for part in where) or "the experiment"
    place = next((lines[where[:n]] for n in range(len(where), 0, -1) if where[:n] in lines), source)
    what, hint = _problem(errors, where, key, tree)
    return UserError(f"{place}: {what}", hint)


def _problem(errors: list[ErrorDetails], where: Location, key: str, tree: dict[str, Any]) -> tuple[str, str]:
    """What is wrong with the key at `where`, by the first of these errors, and what to do."""
    error = errors[0]
    kind, value = error["type"], error["input"]
    hint = f"correct {key}"
    if kind == "extra_forbidden":
        allowed = _allowed_keys(where[:-1])
        near = difflib.get_close_matches(str(where[-1]), allowed, n=1, cutoff=0.5)
        meant = f"did you mean {near[0]!r}? " if near else ""
        what, hint = f"unknown key {_short(key)}", f"{meant}allowed here: {', '.join(allowed) or 'no keys'}"
    elif kind == "missing" and isinstance(value, (tuple, list)):  # a tuple, which lacks values at its end
        places = [e["loc"][-1] for e in errors if e["type"] == "missing"]
        count = 1 + max(place for place in places if isinstance(place, int))
        what = f"{key} is {_short(value)}; it should be {count} values"
    elif kind == "missing":
        what, hint = f"{key} is missing", f"add '{key}: ...'"
    elif isinstance(value, float) and not math.isfinite(value):
        what, hint = f"{key} is {value}, and must be a finite number", "give a number"
    elif kind == "value_error":
        what, hint = f"{f'{key}.' if where else ''}{error.get('ctx', {})['error']}", "correct it there"
    elif kind == "string_pattern_mismatch":
        what = f"{key} is {_short(value)}; a name is letters, digits, '.', '_' and '-', not a path"
        hint = "choose another name"
    else:
        alternatives = [e["msg"] for e in errors if _in_tree(e["loc"], tree)[: len(where)] == where]
        message = " or ".join(dict.fromkeys(text.removeprefix("Input should be ") for text in alternatives))
        what = f"{key} is {_short(value)}; it should be {message}"
    return what, hint


def _in_tree(location: Sequence[int | str], tree: Any) -> Location:
    """The part of pydantic's location that stands in the file (it adds the names of union members)."""
    where: list[int | str] = []
    at: Any = tree
    for n, part in enumerate(location):
        inside = part in at if isinstance(at, dict) else isinstance(at, list) and part in range(len(at))
        last = n == len(location) - 1
        if inside or (last and isinstance(at, dict)):
            where.append(part)
            at = at[part] if inside else None
    return tuple(where)


def _allowed_keys(where: Sequence[int | str]) -> list[str]:
    """The keys of the section at `where`."""
    section: type[BaseModel] = Experiment
    for part in where:
        if isinstance(part, int):  # one of a list's
            continue
        field = next((f for n, f in section.model_fields.items() if str(part) in (n, f.alias)), None)
        inner = None if field is None else _section_in(field.annotation)
        if inner is None:
            return []
        section = inner
    return [field.alias or name for name, field in section.model_fields.items()]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation allows, in whatever union or annotation it stands; None if it allows none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part))), None)


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]} ... {text[-MAX_SHOWN // 4 :]}"


def _kind(value: Any) -> str:
    return "empty" if value is None else f"a {type(value).__name__}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
