"""Sections about the run: where it was, how to do it again, how to use what it shipped. Neither torch nor ray."""

from collections.abc import Sequence

import yaml

from raq.artifact.runtimes import FP32_RUNTIME, RUNTIMES
from raq.experiment.load import as_in_file
from raq.page.parts import Cell, Code, Section, Table, number
from raq.page.records import RunRecords
from raq.report.types import CandidateSummary


def environment(run: RunRecords) -> Section:
    """Where it was measured."""
    found = run.summary["environment"]
    machine = found["machine"]
    settings = dict(sorted((machine.get("settings") or {}).items()))
    facts = {
        "CPU": machine["cpu"], "CPUs": machine["cpus"], "features": ", ".join(machine["features"]),
        "GPUs": ", ".join(machine["gpus"]) or "none",
        "settings": ", ".join(f"{key}={value}" for key, value in settings.items()) or "none",
        **{name: version for name, version in found["versions"].items() if version},
        "commit of raq": found.get("commit"),
    }  # fmt: skip
    rows = [[Cell(name), Cell("" if value is None else str(value))] for name, value in facts.items()]
    data = run.summary["data"]
    rows += [
        [Cell(f"data: {key}"), Cell(str(value))] for key, value in data.items() if not isinstance(value, dict | list)
    ]
    return Section("environment", "Environment", (), [Table("Machine, libraries, data", ["", ""], rows)], is_open=False)


def reproduce(run: RunRecords) -> Section:
    """How to do it again, and what each stage was."""
    rows = [
        [
            Cell(name), Cell(record["fingerprint"][:16]), Cell(str(record.get("started_at", ""))),
            number(record.get("duration_s"), ".1f"), Cell(str(record.get("node", ""))),
        ]
        for name, record in run.stages.items()
    ]  # fmt: skip
    name = run.summary["experiment"]
    settings = yaml.safe_dump(as_in_file(run.settings), sort_keys=False, allow_unicode=True)
    said = [f"Save these settings as {name}.yaml, and with the same data: raq run {name}.yaml"]
    columns = ["stage", "fingerprint", "started", "seconds", "node"]
    how = ("A fingerprint covers all that can change a stage's outcome: settings, data, code, libraries, machine.",)
    return Section("reproduce", "Reproduce", how, [said, Code(settings), Table("Stages", columns, rows)], is_open=False)


def deploy(run: RunRecords) -> Section | None:
    """The lines that load what the verdict ships as it was measured."""
    choice = run.summary["verdict"]["choice"]
    parts = [
        line for candidate in run.summary["candidates"] if candidate["name"] == choice for line in _deployed(candidate)
    ]
    how = ("These lines load the file with the threads that were measured. raq.load_artifact(path) does the same.",)
    return Section("deploy", "Deploy", how, [parts]) if parts else None


def _deployed(candidate: CandidateSummary) -> Sequence[str]:
    lines = []
    for artifact in candidate["artifacts"]:
        runtime = RUNTIMES.get(artifact.get("runtime") or FP32_RUNTIME)
        threads = {row.get("threads") for row in candidate["latency"] if row["device"] == artifact["target"]} - {None}
        lines.append(f"{candidate['name']}, {artifact['target']}: {artifact['path']}, SHA-256 {artifact.get('sha256')}")
        if runtime is not None and runtime.use and len(threads) == 1:
            local = artifact["path"].rpartition("/")[2] if "://" in artifact["path"] else artifact["path"]
            lines.append(runtime.how_to_load(local, threads.pop(), artifact["target"]))
    return lines
