"""An experiment's stages done one by one in this process, without Ray."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from workplace import Workplace

from raq.environment import environment
from raq.plan.prepare import prepare
from raq.plan.stages import Stage
from raq.stages.call import Call
from raq.stages.dispatch import run_stage
from raq.store.files import Record, now
from raq.store.local import Store


def shown(printer: Callable[[Console, Any], None], results: Record, width: int) -> str:
    """What a printer of the terminal makes of a stage's results, at so many columns."""
    file = io.StringIO()
    printer(Console(width=width, file=file), results)
    return file.getvalue()


class Machine:
    """Does stages of an experiment one by one, and keeps their records."""

    def __init__(self, place: Workplace, *overrides: str) -> None:
        self.place = place
        self.overrides = overrides
        self.store = Store(place.folder / "results")

    def plan(self, *overrides: str) -> dict[str, Stage]:
        wanted = [*self.overrides, *overrides]
        return {stage.name: stage for stage in prepare(self.place.experiment, wanted).plan}

    def call(self, plan: dict[str, Stage], name: str) -> Call:
        stage = plan[name]
        inputs = {role: str(self.folder(plan[source])) for role, source in stage.inputs.items()}
        work = str(self.store.work_folder(stage.kind, stage.fingerprint))
        return Call(
            name=name,
            kind=stage.kind,
            settings=stage.settings,
            inputs=inputs,
            folder=work,
            working_directory=str(self.place.folder),
            cpus=1,
        )

    def folder(self, stage: Stage) -> Path:
        return self.store.stage_folder(stage.kind, stage.fingerprint)

    def do(self, name: str, *overrides: str) -> Record:
        plan = self.plan(*overrides)
        stage = plan[name]
        if self.store.find(stage.kind, stage.fingerprint) is None:
            for source in stage.inputs.values():
                self.do(source, *overrides)
            self.keep(stage, run_stage(self.call(plan, name), lambda metrics: None))
        record = self.store.find(stage.kind, stage.fingerprint)
        assert record is not None
        return record["results"]

    def keep(self, stage: Stage, results: Record) -> None:
        kept = {"stage": stage.name, "kind": stage.kind, "fingerprint": stage.fingerprint, "settings": stage.settings}
        self.store.publish(
            stage.kind,
            stage.fingerprint,
            {**kept, "results": results, "environment": environment(), "started_at": now()},
        )
