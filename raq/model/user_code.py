"""The user's own `module:function`: importing it, and a digest of the code behind it. Must not import torch or ray."""

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from raq.errors import UserError


def import_function(name: str, working_directory: str | None) -> Callable[..., Any]:
    """The user's `module:function`, with the working directory on the path.

    Raises UserError if it cannot be imported or is no function; the user's own exception is named.
    """
    module_name, _, function_name = name.partition(":")
    with on_path(working_directory):
        try:
            function = getattr(importlib.import_module(module_name), function_name)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{name}: cannot be imported: {type(error).__name__}: {error}",
                f"{module_name} is looked for in {working_directory or Path.cwd()} and among installed packages",
            ) from error
    if not callable(function):
        raise UserError(f"{name}: {function_name} is no function", "name a function of the module")
    return function


def source_digest(name: str, working_directory: str) -> str | None:
    """SHA-256 of the code behind the user's `module:function`, without running it; None if it has no file.

    The module's own file, and every module below the working directory that it imports, directly or not.
    """
    module = name.partition(":")[0]
    with on_path(working_directory):
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None
    files = {Path(spec.origin)}
    finder = ModuleFinder(path=[working_directory])  # reads import statements; what lies elsewhere is not followed
    with suppress(SyntaxError):  # importing it will say so
        finder.load_file(spec.origin)
    followed = [getattr(found, "__file__", None) for found in finder.modules.values()]
    files |= {Path(file) for file in followed if file}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@contextmanager
def on_path(folder: str | None) -> Iterator[None]:
    """With the folder first on the module search path; None changes nothing."""
    if folder is None or folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
