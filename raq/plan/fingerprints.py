"""What a stage's outcome depends on beside its settings and inputs: the code that it runs.

That code is found, not listed: the modules of raq that the function of a kind of stage (kinds.py) imports, and those
that they import, wherever in them the import stands. Imports neither torch nor ray.
"""

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from raq.plan.kinds import KINDS
from raq.store.files import short_digest

ROOT = Path(__file__).parents[1]
MAX_SHOWN = 40
EXEMPT = {
    "raq.errors": "what an error is called changes no result",
    "raq.environment": "what it finds out is in the settings of the stages that it matters to",
    "raq.lazy": "calls the function that a table names",
    "raq.signals": "how a process ends changes no result",
    "raq.experiment": "its values are in the settings, with their defaults",
    "raq.plan": "what is planned is in the settings",
    "raq.store": "keeps results as they are",
    "raq.report": "shows results as they are",
    "raq.stages.call": "plain values that are in the settings, or of which no outcome depends",
    "raq.stages.transfer": "moves files, whose digests are checked",
    "raq.stages.dispatch": "calls the function that the table names",
    "raq.model.reading": "notes which of the user's files were read",
    "raq.model.imported_code": "finds the user's files, whose digests are in the settings",
    "raq.cluster.answers": "what an actor says when a stage has ended",
    "raq.cluster.events": "reports how far a stage is",
    "raq.cluster.nodes": "which nodes there are changes no result",
    "raq.cluster.session": "how a cluster is joined changes no result",
}
"""Modules, and rooms with all that is in them, on which no outcome depends, and why: they are not followed."""
TRIAL_EXEMPT = ("raq.sweep", "raq.statistics", "raq.cluster")
"""Of a single trial of a sweep also what chooses among trials, and what runs them: it may change, and they stay."""


def depends_on(content: Mapping[str, Any]) -> dict[str, str]:
    """What a fingerprint covers, by name: values as they are if short, else their digest's beginning."""
    found: dict[str, str] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{name}/{key}" if name else str(key), inner)
            return
        text = json.dumps(value, sort_keys=True)
        found[name] = text if len(text) <= MAX_SHOWN else f"#{short_digest(value)}"

    add("", content)
    return found


def code_of_kind(name: str) -> str:
    """SHA-256 of the code that a kind of stage runs, in one process or on a cluster."""
    return code_digest(modules_of_kind(name))


def code_of_trial(name: str) -> str:
    """SHA-256 of the code that one trial of a kind of sweep runs."""
    return code_digest(modules_of_trial(name))


def modules_of_kind(name: str) -> tuple[str, ...]:
    """The modules whose code the outcome of a kind of stage depends on, sorted."""
    kind = KINDS[name]
    roots = [reference.partition(":")[0] for reference in (kind.run, kind.distributed, kind.training) if reference]
    return closure(tuple(roots))


def modules_of_trial(name: str) -> tuple[str, ...]:
    """The modules whose code the outcome of one trial of a kind of sweep depends on, sorted."""
    trial = KINDS[name].trial
    assert trial is not None, f"{name} has no trials"
    return closure((trial,), TRIAL_EXEMPT)


@cache
def closure(roots: tuple[str, ...], exempt: tuple[str, ...] = ()) -> tuple[str, ...]:
    """These modules and all of raq's that they import, at their top or in a function, without what is exempt; sorted.

    A string that is the name of a module counts as an import of it: so are modules named that another process runs.
    """
    left, found = list(roots), set[str]()
    while left:
        module = left.pop()
        if module not in found and not _is_exempt(module, (*EXEMPT, *exempt)):
            found.add(module)
            left += imported_by(module)
    return tuple(sorted(found))


@cache
def imported_by(module: str) -> tuple[str, ...]:
    """The modules of raq that one of them names, but for type checking alone; sorted. A package's own file does not
    count: it has nothing but a docstring (a test holds that)."""
    found = set()
    for node in _executed(_tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return tuple(sorted({name.partition(":")[0] for name in found if _file_of(name) is not None}))


@cache
def code_digest(modules: Iterable[str]) -> str:
    """SHA-256 of the code of these modules of raq, as syntax trees.

    Comments, docstrings and layout do not count, nor where a module lies or in which module of raq a name is defined:
    files can be moved. Names that are imported do, and from where, if not from raq.
    """
    trees = sorted(_digest_of_module(module) for module in modules)
    return hashlib.sha256("".join(trees).encode()).hexdigest()


@cache
def _digest_of_module(module: str) -> str:
    imports: set[str] = set()
    tree = _WithoutText(imports).visit(_tree(module))
    return hashlib.sha256(f"{sorted(imports)}{ast.dump(tree)}".encode()).hexdigest()


class _WithoutText(ast.NodeTransformer):
    """Drops statements that are nothing but a string: docstrings, texts below a schema's keys; and collects imports."""

    def __init__(self, imports: set[str]) -> None:
        self.imports = imports

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if text else node

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        self._collect("", node.names)
        return ast.Pass()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        self._collect(f"{node.module}.", node.names)
        return ast.Pass()

    def _collect(self, module: str, names: Iterable[ast.alias]) -> None:
        for alias in names:
            name = f"{module}{alias.name}"
            known = name.rpartition(".")[2] if name.startswith("raq.") else name
            self.imports.add(f"{known} as {alias.asname or alias.name}")


def _executed(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    left = [tree]
    while left:
        node = left.pop()
        yield node
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            left += ast.iter_child_nodes(node)


def _tree(module: str) -> ast.Module:
    file = _file_of(module)
    if file is None:  # a kind of stage that is done outside of raq
        found = importlib.util.find_spec(module)
        assert found is not None, f"there is no module {module}"
        assert found.origin is not None, f"{module} has no file"
        file = Path(found.origin)
    return ast.parse(file.read_text())


def _file_of(module: str) -> Path | None:
    """The file of a module of raq, or of "module:name"; a package's own excepted; None for all other names."""
    module = module.partition(":")[0]
    if not module.startswith("raq.") or not module.replace(".", "").replace("_", "").isalnum():
        return None
    path = ROOT.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else None


def _is_exempt(module: str, exempt: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in exempt)
