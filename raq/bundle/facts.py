"""Which candidate of a run is exported, and what its folder says of it, from records alone. Neither torch nor ray."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from raq.artifact.runtimes import FP32_RUNTIME, RUNTIMES, Runtime
from raq.errors import UserError, first_problem
from raq.plan.facts import lower_stage_name
from raq.report.ratios import runtime_of
from raq.report.summary import summarise
from raq.report.types import CandidateSummary, ComparedLatency, RunSummary
from raq.stages.call import EXAMPLES
from raq.store.evaluation_results import Evaluation, Examples
from raq.store.files import Record
from raq.store.local import Store, read_run
from raq.store.opening import store_of
from raq.store.results import Lowering
from raq.store.settings import ArtifactSettings

FORMAT = 1
NO_EXAMPLES = "there are no examples of it to verify a copy by"


@dataclass(frozen=True)
class Exported:
    """What is exported. lowered, evaluated: the records of these stages, both of one device; run: the run's record."""

    summary: RunSummary
    run: Record
    store: Store
    candidate: CandidateSummary
    lowered: Record
    evaluated: Record

    @property
    def name(self) -> str:
        """Of the candidate."""
        return self.candidate["name"]

    @property
    def lowering(self) -> Lowering:
        """What its lower stage found."""
        return cast("Lowering", self.lowered["results"])

    @property
    def evaluation(self) -> Evaluation:
        """What its evaluate stage found."""
        return cast("Evaluation", self.evaluated["results"])

    @property
    def examples(self) -> Examples:
        """Those that its evaluate stage has kept."""
        kept = self.evaluation.get("examples")
        assert kept is not None, "find_exported has seen them"
        return kept

    @property
    def runtime(self) -> Runtime:
        """What executes it."""
        return RUNTIMES[self.lowering.get("runtime", FP32_RUNTIME)]

    @property
    def asked(self) -> ArtifactSettings:
        """What the artifact was made for."""
        try:
            return ArtifactSettings.model_validate(self.evaluated.get("settings"), by_name=True)
        except ValidationError as error:
            key, what = first_problem(error)
            place = self.store.stage_folder(self.evaluated["kind"], self.evaluated["fingerprint"])
            raise UserError(
                f"{place / 'record.json'}: damaged at settings.{key}: {what}", "delete its folder and run again"
            ) from None

    @property
    def threads_measured(self) -> int | None:
        """With how many threads its latency was measured; None if it was not, or with several numbers."""
        known = {row.get("threads") for row in self.latency} - {None}
        return known.pop() if len(known) == 1 else None

    @property
    def latency(self) -> list[ComparedLatency]:
        """What was measured of this file."""
        own = (self.runtime.name, self.asked.device)
        return [row for row in self.candidate["latency"] if (runtime_of(row), row["device"]) == own]


def find_exported(run_folder: Path, name: str | None) -> Exported:
    """A candidate of a run, by name; None: the one that the verdict chose.

    Raises UserError for a name that there is not, and for a candidate without a file or without examples.
    """
    summary, run, store = summarise(run_folder), read_run(run_folder), store_of(run_folder)
    known = {candidate["name"]: candidate for candidate in summary["candidates"]}
    wanted = name or summary["verdict"]["choice"]
    if wanted is None:
        raise UserError(
            f"{summary['run']} ships none: {summary['verdict']['why']}",
            f"name one with --candidate: {', '.join(known) or 'it has none'}",
        )
    if wanted not in known:
        raise UserError(f"{summary['run']} has no candidate {wanted!r}", f"it has: {', '.join(known) or 'none'}")
    evaluated = _record(run, store, f"evaluate/{wanted}")
    device = None if evaluated is None else evaluated["settings"].get("device")
    lowered = _record(run, store, lower_stage_name(wanted, device or "cpu"))
    if lowered is None or evaluated is None:
        why = known[wanted]["not_lowered"] or f"the run is not complete: {run['error'] or 'records are missing'}"
        raise UserError(f"{wanted} of {summary['run']} has no evaluated file: {why}", "export another --candidate")
    if lowered["results"].get("runtime", FP32_RUNTIME) not in RUNTIMES:
        raise UserError(f"{wanted} of {summary['run']} has a runtime that is unknown here", "use the raq that made it")
    if "examples" not in evaluated["results"]:
        raise UserError(f"{wanted} of {summary['run']}: {NO_EXAMPLES}: an older raq evaluated it", "run it again")
    if evaluated["results"]["examples"] is None:
        raise UserError(
            f"{wanted} of {summary['run']}: {NO_EXAMPLES}: NumPy has not its inputs' type", "take inputs of another"
        )
    return Exported(summary, run, store, known[wanted], lowered, evaluated)


def _record(run: Record, store: Store, name: str) -> Record | None:
    stage = run["stages"].get(name)
    return None if stage is None else store.read(stage["kind"], stage["fingerprint"])


def metadata(found: Exported) -> dict[str, Any]:
    """metadata.json: what a program needs to know of the model."""
    asked, examples = found.asked, found.examples
    data = asked.data
    names = found.run["data"].get("class_names")
    return {
        "format": FORMAT,
        "experiment": found.summary["experiment"],
        "run": found.summary["run"],
        "candidate": found.candidate["name"],
        "kind": found.candidate["kind"],
        "runtime": found.runtime.name,
        "device": asked.device,
        "file": found.runtime.file_name,
        "sha256": found.lowering.get("sha256"),
        "size_bytes": found.lowering["size_bytes"],
        "inputs": [one.plain() for one in data.inputs],
        "normalisation": None
        if data.mean is None or data.std is None
        else {"scale": 255, "mean": list(data.mean), "std": list(data.std)},
        "classes": data.classes,
        "class_names": names[: data.classes] if names and data.classes and len(names) >= data.classes else None,
        "threads": found.threads_measured or examples["threads"],
        "max_batch": asked.max_batch,
        "examples": {**examples, "file": EXAMPLES, "cpu": _cpu(found.evaluated)},
        "made_on": _cpu(found.lowered) if found.runtime.is_native else None,
        "needs": needs(found),
        "raq": (found.lowered.get("environment") or {}).get("versions", {}).get("raq"),
    }


def _cpu(record: Record) -> str | None:
    machine = (record.get("environment") or {}).get("machine") or {}
    found = machine.get("cpu")
    return None if found is None else str(found)


def needs(found: Exported) -> dict[str, str | None]:
    """The distributions that run it, with the versions that it was evaluated with; None of one that is not known."""
    known = (found.evaluated.get("environment") or {}).get("versions", {})
    versions = {name: known.get(name) for name in (*found.runtime.deployed_with, "numpy")}
    return {name: _version(version) for name, version in versions.items()}


def _version(found: object) -> str | None:
    """A release, without what a build added to it; None of what is none: a stranger's record may hold anything."""
    release = found.partition("+")[0] if isinstance(found, str) else ""
    return release if re.fullmatch(r"[0-9][0-9A-Za-z.]{0,40}", release) else None
