"""Runs for the tests of pages: those kept in results/reference/, and one whose every text is hostile."""

from dataclasses import replace
from typing import Any

import numpy as np
from kept_records import judged_now, read

from raq.experiment.metric import Metric
from raq.page.changed import changed
from raq.page.parts import Section
from raq.page.pictures import Thumbnails
from raq.page.records import RunRecords
from raq.report.terminal import clean
from raq.sweep.answers import Answers

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


PICTURES = Thumbnails(np.array([1, 2, 5]), np.random.default_rng(0).integers(0, 255, (3, 3, 8, 8), dtype=np.uint8))


def changed_section() -> Section:
    """Of six samples, three of which ptq answers otherwise; two of these have a picture."""
    truth = np.array([0, 1, 2, 0, 1, 2])
    fp32, ptq = (np.stack([np.array(classes), truth]) for classes in ([0, 1, 2, 0, 1, 0], [0, 2, 2, 1, 1, 2]))
    run = kept("cifar10")
    run.summary["data"]["class_names"] = ["<b>cat</b>", "dog", "frog"]
    answers = {name: Answers(Metric(), values, False, 6) for name, values in (("fp32", fp32), ("ptq", ptq))}
    section = changed(replace(run, answers=answers, thumbnails=PICTURES))
    assert section is not None
    return section


def poisoned(value: Any) -> Any:
    """Every text of a summary, and every name, with what would run if it were not escaped."""
    if isinstance(value, dict):
        return {key: poisoned(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [poisoned(entry) for entry in value]
    return f"{value}{HOSTILE}" if isinstance(value, str) and value not in KNOWN else value
