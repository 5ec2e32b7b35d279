"""The import lines of the architecture, held by reading the source and by looking at what a start really imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import raq

ROOT = Path(raq.__file__).parent
FRONT = (
    "cli", "errors", "interruption", "experiment", "yaml_text", "plan", "records", "environment", "run", "stages",
    "doctor", "requirements", "experiment_file", "stale", "record_schema", "sweeps", "finished", "fingerprints",
    "schema", "sweep_schema", "training_schema", "searches", "mixtures", "json_schema", "starter", "failures",
    "__init__", "__main__",
)  # fmt: skip
MAY_IMPORT = {
    "model": {"model"},
    "quantize": {"quantize", "model"},
    "bench": {"bench", "quantize", "model"},
    "report": {"report", "bench"},
}
WINGS = {"model", "quantize", "bench", "cluster", "report"}


def imported(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_level(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imported(tree)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_import_lines(path: Path) -> None:
    wing = path.relative_to(ROOT).parts[0].removesuffix(".py")
    anywhere = imported(ast.parse(path.read_text()))
    if wing != "cluster":
        assert not {n for n in anywhere if n.split(".")[0] == "ray"}, "only cluster imports ray"
    if wing in (*FRONT, "report"):
        assert not {n for n in top_level(path) if n.split(".")[0] in ("torch", "torchao", "torchvision")}
    used = {n.split(".")[1] for n in anywhere if n.startswith("raq.") and len(n.split(".")) > 1} & WINGS
    if wing in MAY_IMPORT:
        assert used <= MAY_IMPORT[wing], f"{wing} may not use {used - MAY_IMPORT[wing]}"


@pytest.mark.parametrize(
    "module",
    ["raq.cli.main", "raq.run", "raq.report.console", "raq.plan.stages", "raq.stages.dispatch", "raq.model.dataset"],
)
def test_front_starts_without_torch_and_ray(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'ray') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
