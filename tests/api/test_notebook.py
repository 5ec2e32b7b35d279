"""The display of a notebook: one table, of which nothing is shown by rich on its own."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from raq.api.notebook import NotebookDisplay


def test_it_is_one_table_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)

    def display(html: str, **keys: Any) -> Any:
        shown.append(f"first {html}")
        return handle

    # what a kernel of Jupyter offers, which the tests do not install
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    stages: Any = [SimpleNamespace(name="train", kind="train"), SimpleNamespace(name="bench/cpu", kind="bench")]
    seen = NotebookDisplay()
    assert not seen.console_of(io.StringIO()).is_jupyter
    seen.begin(stages, {"train": "has not run"}, io.StringIO())
    seen.stage("train", {"state": "running", "text": "<script>alert(1)</script>"})
    seen.note("a node \x1b[31mwas lost")
    seen.end()
    assert shown[0].startswith("first <pre")
    assert sum(html.startswith("first") for html in shown) == 1
    assert "train" in shown[-1] and "bench/cpu" in shown[-1]
    assert "<script>" not in shown[-1]
    assert "&lt;script&gt;" in shown[-1]
    assert "was lost" in shown[-1]
