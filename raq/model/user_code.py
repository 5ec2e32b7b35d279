"""The user's own `module:function`: importing it, and what it is made of. Must not import torch or ray."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from raq.errors import UserError
from raq.store.settings import Sources
from raq.store.views import View

PREFIXES = ("torchvision", "timm", "transformers", "hf")  # of names that are a library's
IMPORT_TIMEOUT_S = 180.0
CHILD = Path(__file__).with_name("imported_code.py")
LIBRARIES = (
    "torch", "torchvision", "torchao", "ray", "numpy", "PIL", "yaml", "pydantic", "rich", "typer", "pyarrow", "pandas",
    "sklearn", "scipy", "optuna", "elftools", "executorch", "sympy",
)  # fmt: skip


def is_own(name: str) -> bool:
    """Whether a name is the user's module:function, and not one of a library's."""
    return ":" in name and name.partition(":")[0] not in PREFIXES


def import_function(name: str, working_directory: str | None) -> Callable[..., Any]:
    """The user's `module:function`, with the working directory on the path.

    Raises UserError if it cannot be imported or is no function; the user's own exception is named.
    """
    module_name, _, function_name = name.partition(":")
    with on_path(working_directory):
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (Exception, SystemExit) as error:
            raise _not_imported(name, f"{type(error).__name__}: {error}", working_directory) from error
    if not callable(function):
        raise UserError(f"{name}: {function_name} is no function", "name a function of the module")
    found: Callable[..., Any] = function
    return found


def _not_imported(name: str, why: str, working_directory: str | None) -> UserError:
    folder = Path(working_directory or Path.cwd())
    hides = shadowing(folder)
    hint = f"{name.partition(':')[0]} is looked for in {folder}, where raq runs, and among installed packages"
    if hides:
        hint = f"{', '.join(hides)} in {folder} hides a library of that name: rename it"
    return UserError(f"{name}: cannot be imported: {why}", hint)


def shadowing(folder: Path) -> list[str]:
    """The Python files and packages in a folder that have the name of a library, Python's or one that raq stands on."""
    try:
        names = [entry.name for entry in folder.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()]
    except OSError:
        return []
    libraries = {*sys.stdlib_module_names, *LIBRARIES}
    return sorted(name for name in names if name.removesuffix(".py") in libraries)


class _Found(View):
    files: dict[str, str] = Field(default_factory=dict)
    distributions: dict[str, str] = Field(default_factory=dict)
    error: str | None = None


def sources_of(name: str, working_directory: str) -> Sources:
    """What the code behind the user's `module:function` is made of: {"files": {path: SHA-256}, "distributions": {name:
    version}}.

    It is imported in a child process; files are those of every module that comes along and is neither Python's nor of
    an installed distribution (`__init__.py` files and re-exports among them), distributions those of the others. What
    is imported or read only when the function runs is found when it does (`reading.py`). Raises UserError if it cannot
    be imported, or not in time.
    """
    command = [sys.executable, "-P", str(CHILD), name, working_directory]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=IMPORT_TIMEOUT_S, check=False
        )
        found = _Found.model_validate(json.loads(done.stdout.strip().splitlines()[-1]))
    except subprocess.TimeoutExpired:
        raise _not_imported(name, f"it takes longer than {IMPORT_TIMEOUT_S:.0f} s", working_directory) from None
    except (ValueError, IndexError):
        last = next(iter(reversed(done.stderr.strip().splitlines())), f"its process ended with {done.returncode}")
        raise _not_imported(name, last, working_directory) from None
    if found.error is not None:
        raise _not_imported(name, found.error, working_directory)
    return Sources(files=found.files, distributions=found.distributions)


@contextmanager
def on_path(folder: str | None) -> Iterator[None]:
    """With the folder first on the module search path; None changes nothing."""
    if folder is None or sys.path[:1] == [folder]:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
