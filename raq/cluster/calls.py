"""What goes to a stage's actor, and the record that is made of what comes back. Imports neither torch nor ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from raq.cluster.answers import Answer
from raq.cluster.resources import Demand
from raq.experiment.schema import Experiment
from raq.plan.stages import Stage
from raq.stages.call import Call
from raq.store.files import Record
from raq.store.local import Store


@dataclass(frozen=True)
class Handover:
    """What is the same for all stages of a run; wait_s: seconds to wait for nodes in place of those that are lost."""

    experiment: Experiment
    plan: Sequence[Stage]
    store: Store
    run_folder: Path
    working_directory: str
    wait_s: float

    def where_log_is(self, stage: Stage) -> str:
        """Where people find a stage's log."""
        log = self.log_of(stage)
        address = self.store.address
        return str(log) if address is None else f"{address.partition('?')[0]}/{'/'.join(log.parts[-4:])}"

    def log_of(self, stage: Stage) -> Path:
        """Where the log of a stage is written."""
        return self.run_folder / "logs" / f"{stage.name.replace('/', '-')}.log"

    def call(self, stage: Stage, demand: Demand) -> Call:
        """What its actor is asked to do, with the resources that it gets."""
        inputs = {
            role: str(self.store.stage_folder(given.kind, given.fingerprint))
            for role, given in self._inputs(stage).items()
        }
        return Call(
            name=stage.name,
            kind=stage.kind,
            settings=stage.settings,
            inputs=inputs,
            folder=str(self.store.work_folder(stage.kind, stage.fingerprint)),
            data_root=self.experiment.data.root,
            data_workers=self.experiment.data.workers,
            weights_file=self.experiment.model.weights,
            working_directory=self.working_directory,
            cpus=demand.cpus,
            gpus=demand.gpus,
            workers=demand.workers,
            labels=stage.resources.labels,
            elastic=None if stage.least_workers is None else (stage.least_workers, stage.workers),
            address=self.store.address,
            wait_s=self.wait_s,
        )

    def record(self, stage: Stage, answer: Answer, attempts: int) -> Record:
        """The record of a stage, of its actor's answer; input_ids are None of inputs that are gone meanwhile."""
        inputs = self._inputs(stage)
        ids = {role: self.store.execution(given.kind, given.fingerprint) for role, given in inputs.items()}
        return {
            "id": answer.id,
            "files": answer.files,
            "digests": answer.digests,
            "stage": stage.name,
            "kind": stage.kind,
            "fingerprint": stage.fingerprint,
            "settings": stage.settings,
            "inputs": {role: given.fingerprint for role, given in inputs.items()},
            "input_ids": ids,
            "results": answer.results,
            "environment": answer.environment,
            "cpus": answer.cpus,
            "workers": answer.workers,
            "node": answer.node,
            "started_at": answer.started_at,
            "duration_s": answer.duration_s,
            "attempts": attempts,
        }

    def _inputs(self, stage: Stage) -> dict[str, Stage]:
        return {role: self._by_name[name] for role, name in stage.inputs.items()}

    @cached_property
    def _by_name(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.plan}
