"""The runs of a results folder, a line each: what `raq runs` prints. From records alone: neither torch nor ray."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from raq.errors import UserError
from raq.report.summary import summarise
from raq.report.terminal import clean, say
from raq.store.local import UNFINISHED, read_run


class RunLine(TypedDict):
    """One run. state: complete, stopped (it ended without being complete), unfinished (it goes on, or was killed) or
    damaged (its records cannot be read); choice, why: its verdict by today's rules, or what is wrong with it."""

    run: str
    experiment: str | None
    started_at: str | None
    state: str
    choice: str | None
    why: str


def run_lines(folders: Sequence[Path]) -> list[RunLine]:
    """A line for each of these runs, in their order; a damaged run has one too."""
    return [_line(folder) for folder in folders]


def _line(folder: Path) -> RunLine:
    try:
        run = read_run(folder)
    except UserError as error:
        return RunLine(
            run=folder.name, experiment=None, started_at=None, state="damaged", choice=None, why=error.message
        )
    state = "complete" if run["complete"] else UNFINISHED if run["error"] in (None, UNFINISHED) else "stopped"
    try:
        found = summarise(folder)["verdict"]
        choice, why = found["choice"], found["why"]
    except UserError as error:
        state, choice, why = "damaged", None, error.message
    return RunLine(
        run=run["id"], experiment=run["experiment"], started_at=_moment(run.get("started_at")), state=state,
        choice=choice, why=why,
    )  # fmt: skip


def _moment(value: object) -> str | None:
    """The value, if it is a moment in ISO 8601; None otherwise (a stranger's record may hold anything)."""
    with suppress(ValueError):
        return datetime.fromisoformat(value).isoformat() if isinstance(value, str) else None
    return None


def print_runs(console: Console, lines: Sequence[RunLine], total: int) -> None:
    """The table of these runs (an id holds the start in UTC and the experiment), and how many more there are."""
    if not lines:
        say(console, "there is no run here: make one with 'raq run', or give --results", "dim")
        return
    lines = clean(list(lines))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False, expand=True)
    for heading, values in (("run", [line["run"] for line in lines]), ("state", [line["state"] for line in lines])):
        table.add_column(heading, no_wrap=True, width=max(len(heading), *map(len, values)))
    table.add_column("verdict", no_wrap=True, overflow="ellipsis", ratio=1)
    for line in lines:
        table.add_row(line["run"], line["state"], f"ship {line['choice']}" if line["choice"] else line["why"])
    console.print(table)
    if total > len(lines):
        say(console, f"{total - len(lines)} older runs: --limit {total} shows all", "dim")
