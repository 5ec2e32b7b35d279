"""How a run is shown in a notebook while it goes: the table of the terminal, as HTML. Neither torch nor ray."""

import io
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console

from raq.plan.stages import Stage
from raq.report.live import RunDisplay

EVERY_S = 0.5


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter."""
    try:
        from IPython import get_ipython  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


class NotebookDisplay(RunDisplay):
    """Shows a run in the cell that does it; `running.run` reports to it."""

    def __init__(self) -> None:
        super().__init__()
        self.handle: Any = None
        self.notes: list[str] = []
        self.shown = 0.0

    def console_of(self, output: TextIO) -> Console:
        """One that nobody sees: what is printed line by line elsewhere is in the table here."""
        return _unseen()

    def begin(self, plan: Sequence[Stage], stale: Mapping[str, str], output: TextIO) -> None:
        """Show the plan."""
        from IPython.display import HTML, display

        super().begin(plan, stale, output)
        self.handle = display(HTML(self.html()), display_id=True)

    def stage(self, name: str, event: Mapping[str, Any]) -> None:
        """Take in what happened to a stage."""
        super().stage(name, event)
        if event.get("state") == "done" or time.monotonic() - self.shown > EVERY_S:
            self._show()

    def note(self, text: str) -> None:
        """Say something that is of no stage."""
        self.notes.append(text)
        self._show()

    def end(self) -> None:
        """Leave the last state in the cell."""
        self._show()

    def html(self) -> str:
        """The table of stages as HTML; every text in it is escaped."""
        console = _unseen()
        console.print(self._table())
        for note in self.notes:
            console.print(f"raq: {note}", markup=False, highlight=False)
        return console.export_html(inline_styles=True, code_format='<pre style="white-space:pre">{code}</pre>')

    def _show(self) -> None:
        from IPython.display import HTML

        self.shown = time.monotonic()
        if self.handle is not None:
            self.handle.update(HTML(self.html()))


def _unseen() -> Console:
    """A console that keeps what is printed; rich would show each line in the notebook by itself."""
    return Console(
        record=True, file=io.StringIO(), width=120, markup=False, emoji=False, highlight=False, force_jupyter=False
    )
