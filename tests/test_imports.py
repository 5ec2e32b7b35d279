"""The floors of the house: who may import whom, held by reading the source; and what a start really imports."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import raq

ROOT = Path(raq.__file__).parent
# Each room, or file at the top, may import those before it, and itself.
FLOORS = (
    "errors", "lazy", "environment", "signals", "statistics",
    "experiment", "store", "model", "quantize", "kernels", "artifact", "sweep", "bench", "plan", "stages", "cluster",
    "submit", "doctor", "report", "page", "bundle", "tracking", "run_record", "running", "api", "cli",
    "__init__", "__main__",
)  # fmt: skip
WITHOUT_RAY = [floor for floor in FLOORS if floor not in ("cluster", "submit")]
# Rooms that must start without torch: it is imported in functions there, if at all.
WITHOUT_TORCH = (
    "errors", "lazy", "environment", "signals", "statistics", "experiment", "store", "sweep", "plan", "stages",
    "submit", "doctor", "report", "page", "bundle", "tracking", "run_record", "running", "api", "cli", "__init__",
    "__main__",
)  # fmt: skip
MAX_TOP = 9
FILES = {path: ".".join(("raq", *path.relative_to(ROOT).with_suffix("").parts)) for path in sorted(ROOT.rglob("*.py"))}
MODULES = {module.removesuffix(".__init__"): path for path, module in FILES.items()}


def floor_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            names |= {name if (name := f"{parent}.{alias.name}") in MODULES else parent for alias in node.names}
    return names


def top_level(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported(tree)


def test_every_file_is_on_a_floor_and_every_floor_is_there() -> None:
    assert {floor_of(module) for module in MODULES} == set(FLOORS)
    assert len(list(ROOT.glob("*.py"))) <= MAX_TOP


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_import_lines(path: Path) -> None:
    own = floor_of(FILES[path]) if FILES[path] != "raq.__init__" else "__init__"
    anywhere = imported(ast.parse(path.read_text()))
    uphill = {n for n in anywhere & set(MODULES) if FLOORS.index(floor_of(n)) > FLOORS.index(own)} - {"raq"}
    assert not uphill, f"{own} is below"
    if own in WITHOUT_RAY:
        assert not {n for n in anywhere if n.split(".")[0] == "ray"}, "only cluster and submit import ray"
    if own in WITHOUT_TORCH:
        assert not {n for n in top_level(path) if n.split(".")[0] in ("torch", "torchao", "torchvision")}


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: imported(ast.parse(path.read_text())) & set(MODULES) - {module, "raq"}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_a_rooms_own_file_has_a_docstring_and_nothing_else() -> None:
    """Whatever it did, every import of a file of the room would do, and no fingerprint would cover it."""
    for path in ROOT.glob("*/__init__.py"):
        statements = ast.parse(path.read_text()).body
        assert [type(statement) for statement in statements] == [ast.Expr], path


@pytest.mark.parametrize(
    "module",
    [
        "raq.cli.main",
        "raq.running",
        "raq.api.finished",
        "raq.report.console",
        "raq.plan.stages",
        "raq.stages.dispatch",
        "raq.model.dataset",
    ],
)
def test_front_starts_without_torch_and_ray(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'ray') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
