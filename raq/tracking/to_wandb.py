"""Weights & Biases: a run in the run's folder, offline unless WANDB_MODE says otherwise (`wandb sync` sends it)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raq.report.terminal import printable
from raq.tracking.tracker import Values


class WandB:
    """Metrics by epoch, the experiment as its config, a table a sweep, and a summary."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self.wandb = wandb
        self.run = wandb.init(
            project=str(settings["name"]), name=folder.name, dir=str(folder), config=dict(settings),
            mode=os.environ.get("WANDB_MODE") or "offline", reinit="create_new",  # type: ignore[arg-type, unused-ignore]
            settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        self.trials: dict[str, list[dict[str, Any]]] = {}

    def scalars(self, values: Values, step: int) -> None:
        """Values by name at an epoch; each stage has steps of its own."""
        stage = next(iter(values)).partition("/")[0] if values else ""
        self.run.log({**values, f"{stage}/epoch": step})

    def trial(self, sweep: str, number: int, config: Mapping[str, Any], values: Values, *, failed: bool) -> None:
        """A finished trial, for the sweep's table."""
        plain = {f"config/{key}": str(value) for key, value in config.items()}
        self.trials.setdefault(sweep, []).append({"trial": number, "failed": failed, **plain, **values})

    def result(self, values: Values, texts: Mapping[str, str]) -> None:
        """What the run came to."""
        for name, value in values.items():
            self.run.summary[name] = value
        for name, text in texts.items():
            self.run.summary[name] = printable(text)

    def close(self, *, failed: bool) -> None:
        """Write the tables, and what is left."""
        for sweep, rows in self.trials.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            table = self.wandb.Table(columns=columns, data=[[row.get(key) for key in columns] for row in rows])
            self.run.log({f"sweep/{sweep}": table})
        self.run.finish(exit_code=1 if failed else 0)
