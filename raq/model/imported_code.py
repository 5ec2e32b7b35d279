"""What the user's `module:function` imports: run as a script, `python -P imported_code.py NAME FOLDER`, by user_code.

Prints one line of JSON: {"files": {path: SHA-256}, "distributions": {name: version}}, or {"error": ...}. Files are of
every module that is neither Python's nor of an installed distribution; distributions are those of the others. The
module is imported, and after it whatever its files import inside of functions, as that runs later. Imports Python's own
modules alone.
"""

import ast
import contextlib
import hashlib
import importlib
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

MAX_IMPORTS = 2000


def main() -> None:
    """Import what the command line names and print what came along."""
    name, folder = sys.argv[1:]
    answer = os.dup(1)
    os.dup2(2, 1)  # what the user's code prints is not the answer
    sys.path.insert(0, folder)
    before = set(sys.modules)
    module_name, _, function = name.partition(":")
    try:
        getattr(importlib.import_module(module_name), function)
    except BaseException as error:
        first = next(iter(str(error).strip().splitlines()), "")  # as errors.first_line: nothing of raq is imported here
        found: dict[str, Any] = {"error": f"{type(error).__name__}: {first}"}
    else:
        found = _describe(before, Path(folder))
        os.write(answer, json.dumps(found).encode() + b"\n")  # it stands if the rest ends this process
        _import_the_rest(before)
        found = _describe(before, Path(folder))
    os.write(answer, json.dumps(found).encode() + b"\n")


def users_modules(before: set[str]) -> dict[str, Path]:
    """By name, the files of the modules imported since `before` that are neither Python's nor installed."""
    is_users, found = users_files(), {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name in before or not isinstance(module, ModuleType) or not file:
            continue
        path = Path(file).resolve()
        if path.is_file() and is_users(path):
            found[name] = path
    return found


@cache  # looking up whose packages are installed reads the metadata of all of them
def users_files() -> Callable[[Path], bool]:
    """Which files, by resolved path, are the user's: neither Python's, nor raq's, nor of an installed package."""
    own = [Path(sysconfig.get_paths()[key]).resolve() for key in ("stdlib", "platstdlib")]
    sites = [Path(sysconfig.get_paths()[key]).resolve() for key in ("purelib", "platlib")]
    owned, raq = metadata.packages_distributions(), Path(__file__).resolve().parents[1]

    def is_users(path: Path) -> bool:
        if path.is_relative_to(raq):
            return False
        site = next((site for site in sites if path.is_relative_to(site)), None)
        if site is not None:  # a loose file among packages is nobody's but the user's
            return path.relative_to(site).parts[0].partition(".")[0] not in owned
        return not any(path.is_relative_to(root) for root in own)

    return is_users


def _import_the_rest(before: set[str]) -> None:
    """Import what the user's files import inside of functions, and what those files import; errors are theirs to show
    when they run."""
    seen: set[str] = set()
    while len(seen) < MAX_IMPORTS:
        users = {name: path for name, path in users_modules(before).items() if name not in seen}
        if not users:
            return
        for name, path in users.items():
            seen.add(name)
            for wanted in _imports(name, path):
                with contextlib.suppress(BaseException):
                    importlib.import_module(wanted)


def _imports(name: str, path: Path) -> list[str]:
    """Absolute names of what a module's source imports, anywhere in it; of `from a import b` also a.b."""
    if path.suffix != ".py":
        return []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: list[str] = []
    with contextlib.suppress(SyntaxError, ValueError, OSError):
        for node in _statements(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                relative = "." * node.level + (node.module or "")
                with contextlib.suppress(ImportError):
                    base = resolve_name(relative, package) if node.level else node.module or ""
                    found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in dict.fromkeys(found) if name and name not in sys.modules]


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of blocks that do not run on import: `if __name__ == ...` and `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        condition = ast.dump(node.test) if isinstance(node, ast.If) else ""
        if "'__name__'" in condition or "TYPE_CHECKING" in condition:
            continue
        yield node
        yield from _statements(node)


def _describe(before: set[str], folder: Path) -> dict[str, Any]:
    files = {}
    for path in sorted(set(users_modules(before).values())):
        inside = path.is_relative_to(folder.resolve())
        shown = path.relative_to(folder.resolve()) if inside else path
        files[str(shown)] = hashlib.sha256(path.read_bytes()).hexdigest()
    tops = {name.partition(".")[0] for name in set(sys.modules) - before}
    owners = metadata.packages_distributions()
    names = {owner for top in tops for owner in owners.get(top, [])}
    return {"files": files, "distributions": {name: metadata.version(name) for name in sorted(names)}}


if __name__ == "__main__":
    main()
