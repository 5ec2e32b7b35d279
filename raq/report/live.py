"""The terminal while a run goes: a line a stage, live on a terminal, plain lines elsewhere. Neither torch nor ray."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raq.lazy import resolve
from raq.plan.kinds import KINDS
from raq.plan.stages import Stage
from raq.report.lines import epoch
from raq.report.terminal import plain_console, printable, say

Event = Mapping[str, Any]
MARKS = {"waiting": "·", "starting": "…", "running": "▸", "retry": "↻", "done": "✓", "up to date": "="}
STYLES = {
    "waiting": "dim",
    "starting": "cyan",
    "running": "bold cyan",
    "retry": "yellow",
    "done": "green",
    "up to date": "dim",
}


class RunDisplay:
    """Shows a run while it goes; `run` reports to it."""

    def __init__(self) -> None:
        self.lines: dict[str, _Line] = {}
        self.console = plain_console()
        self.live: Live | None = None

    def begin(self, plan: Sequence[Stage], stale: Mapping[str, str], output: TextIO) -> None:
        """Show the plan."""
        self.console = self.console_of(output)
        self.lines = {
            stage.name: _Line(stage.name, stage.kind, "waiting" if stage.name in stale else "up to date")
            for stage in plan
        }
        if self.console.is_terminal:
            self.live = Live(self._table(), console=self.console, refresh_per_second=4, get_renderable=self._table)
            self.live.start()
        else:
            self._print(f"plan: {len(stale)} of {len(plan)} stages to do: {', '.join(stale)}")

    def console_of(self, output: TextIO) -> Console:
        """What is printed on."""
        return plain_console(output)

    def stage(self, name: str, event: Event) -> None:
        """Take in what happened to a stage."""
        line = self.lines[name]
        if line.take(event) and self.live is None:
            self._print(f"{line.name}: {line.state}{': ' if line.text else ''}{line.text}")

    def note(self, text: str) -> None:
        """Say something that is of no stage."""
        self._print(f"raq: {text}")

    def end(self) -> None:
        """Leave the last state on the screen."""
        if self.live is not None:
            self.live.update(self._table(), refresh=True)
            self.live.stop()
            self.live = None

    def _print(self, text: str) -> None:
        say(self.console, text)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="ellipsis")
        for line in self.lines.values():
            style = STYLES[line.state]
            mark = MARKS[line.state] if self.console.encoding.startswith("utf") else line.state[:1]
            table.add_row(
                Text(mark, style),
                Text(printable(line.name), style),
                Text(line.clock(), "dim"),
                Text(printable(line.text), "" if line.active else "dim"),
            )
        return table


class _Line:
    """One stage on the screen."""

    def __init__(self, name: str, kind: str, state: str) -> None:
        self.name = name
        self.kind = kind
        self.state = state
        self.text = ""
        self.began: float | None = None
        self.took_s: float | None = None
        self.counted: tuple[float, float] | None = None  # when, and at which share, progress was first reported
        self.printed = 0.0

    @property
    def active(self) -> bool:
        """Whether the stage is being done."""
        return self.state in ("starting", "running", "retry")

    def take(self, event: Event) -> bool:
        """Take in an event; whether it is worth a line off a terminal."""
        changed = event.get("state", self.state) != self.state
        self.state = event.get("state", self.state)
        if self.began is None and self.state in ("starting", "running"):
            self.began = time.monotonic()
        if self.state == "done":
            self.took_s = event["duration_s"]
            self.text = resolve(KINDS[self.kind].summary)(event["results"])
        elif "epoch_done" in event:
            self.text = epoch(event["epoch_done"])
            return True
        elif "share" in event or "text" in event:
            self.text = self._progress_row(event)
            if event.get("notice"):
                return True
        due = time.monotonic() - self.printed > 15
        if changed or due:
            self.printed = time.monotonic()
        return changed or due

    def _progress_row(self, event: Event) -> str:
        parts = [event["text"]] if "text" in event else []
        if "epoch" in event:
            parts += [
                f"epoch {event['epoch']}/{event['epochs']}",
                f"loss {event['loss']:.3f}",
                f"{event['images_per_s']:.0f} images/s",
            ]
        if (share := event.get("share", 0)) > 0:
            parts.append(f"{100 * share:.0f}%")
            now = time.monotonic()
            if self.counted is None or share < self.counted[1]:
                self.counted = now, share  # what came before, loading and compiling, says nothing about the rest
            began, first = self.counted
            if share > first:
                parts.append(f"{seconds((now - began) * (1 - share) / (share - first))} left")
        return ", ".join(parts)

    def clock(self) -> str:
        """The time that the stage took, or has taken so far."""
        if self.took_s is not None:
            return seconds(self.took_s)
        return seconds(time.monotonic() - self.began) if self.active and self.began is not None else ""


def seconds(duration_s: float) -> str:
    """A duration as people say it."""
    if duration_s < 100:
        return f"{duration_s:.0f} s"
    return f"{duration_s / 60:.0f} min" if duration_s < 7200 else f"{duration_s / 3600:.1f} h"
