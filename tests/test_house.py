"""How large the pieces are, and that records are read through models: what a reader relies on, held by the source."""

import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

import pytest

import raq
from raq.store import results, sweep_results, types

ROOT = Path(raq.__file__).parent
TYPED = ("store", "report", "page", "bundle", "api", "tracking")  # they read TypedDicts, whose keys mypy checks
MAX_LINES, MAX_FUNCTION, MAX_MEDIAN = 300, 50, 150
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(ROOT.rglob("*.py"))}
# Who looks up by a text that is also a key of records, and in what: formats that are not raq's own.
NO_RECORDS = {
    "artifact/alone_onnxruntime.py": "the profile of ONNX Runtime",
    "artifact/metadata.py": "metadata of an artifact",
    "artifact/wrapper_code.py": "the C++ of a package",
    "artifact/xnnpack.py": "the flatbuffer of a .pte",
    "cluster/ray_train.py": "placement groups, as Ray lists them",
    "experiment/load.py": "errors of pydantic",
    "experiment/measurement.py": "the YAML, before it is checked",
    "experiment/sweep.py": "the YAML, before it is checked",
    "model/cache.py": "the arrays of a data set",
    "model/checkpoints.py": "a checkpoint of torch",
    "model/dataset.py": "the arrays of a data set",
    "model/sources.py": "files of data sets",
    "model/hub_data.py": "rows of data sets",
    "plan/stages.py": "settings and inputs that are being made",
    "submit/working_dir.py": "the YAML, before it is checked",
    "artifact/alone_tensorrt.py": "what TensorRT says, and metadata where there is no raq",
    "artifact/tensorrt.py": "metadata that are being made",
}


def keys_of_records() -> set[str]:
    """Of all TypedDicts of the store."""
    kinds = [kind for module in (types, results, sweep_results) for kind in vars(module).values()]
    return {key for kind in kinds if hasattr(kind, "__total__") for key in kind.__annotations__}


def look_ups(tree: ast.AST) -> Iterator[str]:
    """Texts that something is looked up by: x["text"], x.get("text"), x.pop("text")."""
    for node in ast.walk(tree):
        key: ast.AST | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("get", "pop"):
            key = next(iter(node.args), None)
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value


@pytest.mark.parametrize("name", [name for name in TREES if name.partition("/")[0] not in TYPED])
def test_records_are_read_through_models(name: str) -> None:
    found = set(look_ups(TREES[name])) & keys_of_records()
    assert not found or name in NO_RECORDS, f"read {sorted(found)} through a View (store/views.py)"


def test_the_keys_of_records_are_known() -> None:
    assert {"results", "parity", "int8_mac_share", "speedup_interval", "curve", "choice"} <= keys_of_records()
    assert list(look_ups(ast.parse("a['results'].get('parity', [])['x'] = 1"))) == ["parity", "results"]


def test_pieces_are_small() -> None:
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in TREES}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    assert statistics.median(count for name, count in lines.items() if not name.endswith("__init__.py")) <= MAX_MEDIAN
    long = {
        f"{name}:{node.name}": count
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    }
    assert long == {}
