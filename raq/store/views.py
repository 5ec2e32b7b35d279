"""What of a record another stage, a requirement or a check needs, as a model whose keys mypy knows.

Who reads a record says which keys it reads, in a `View` of its own; the rest is left aside. Neither torch nor ray.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from raq.errors import UserError, first_line, first_problem
from raq.store.files import read_json

V = TypeVar("V", bound="View")


class View(BaseModel):
    """Some keys of a record; others are left aside."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Execution(View):
    id: str


class _Finished(View):
    results: dict[str, Any]


def view(kind: type[V], values: Any, place: str) -> V:
    """Plain values as `kind`; UserError, naming the place and the key, if they are not."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        key, what = first_problem(error)
        raise UserError(f"{place}: damaged at {key or 'its top'}: {what}", "delete its folder and run again") from None


def view_file(kind: type[V], path: Path) -> V:
    """A JSON file as `kind`; UserError if it is missing or damaged."""
    return view(kind, read_json(path), str(path))


def view_results(kind: type[V], folder: Path) -> V:
    """The results in the record of a finished stage as `kind`; UserError if it is missing or damaged."""
    return view(kind, view_file(_Finished, folder / "record.json").results, str(folder / "record.json"))


@contextmanager
def refused_if_damaged(what: str) -> Iterator[None]:
    """Whatever a damaged record makes fail, as UserError that names what cannot be shown."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"the records of {what} cannot be shown ({type(error).__name__}: {first_line(error)})",
            "a record is damaged or of another version: run again, or show it with the raq that made it",
        ) from error


def execution_of(folder: Path) -> str:
    """Which execution left the files of a finished stage."""
    return view_file(_Execution, folder / "record.json").id
