"""Runs for the tests of pages: those kept in results/reference/, and one whose every text is hostile."""

from typing import Any

from kept_records import judged_now, read

from raq.page.records import RunRecords
from raq.report.terminal import clean

KNOWN = ("points", "top1", "fp32", "budget")  # what code compares with
HOSTILE = "</script><script>alert(1)</script>\x1b[31m[bold]<img src=x onerror=alert(2)>\u202egnp.exe"


def kept(name: str) -> RunRecords:
    summary = read(f"{name}/summary.json") if name == "minilm" else judged_now(name)
    records = {} if name == "minilm" else read(f"{name}/records.json")
    return RunRecords(clean(summary), read(f"{name}/run.json")["settings"], clean(records), {})


def hostile(name: str) -> RunRecords:
    """A kept run of which every text, names and devices among them, would run if it were not escaped."""
    run = kept(name)
    return RunRecords(clean(poisoned(run.summary)), run.settings, clean(poisoned(dict(run.stages))), {})


def poisoned(value: Any) -> Any:
    """Every text of a summary, and every name, with what would run if it were not escaped."""
    if isinstance(value, dict):
        return {key: poisoned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(entry) for entry in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) and value not in KNOWN else value
