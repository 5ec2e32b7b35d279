"""`raq compare`: what differs between runs, and whether it is real. From records alone: neither torch nor ray.

Milliseconds of different days are never compared: speedups over the baseline, measured in the same run, are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raq.bench.ratio_statistics import ratio_of_ratios
from raq.experiment.metric import heading_of
from raq.report.answers import read_answers_of_run
from raq.report.changes import changed_keys, changed_stages
from raq.report.claims import Rules
from raq.report.ratios import baseline_row, compared, row_ratios
from raq.report.summary import summarise
from raq.report.types import CandidateSummary, ComparedLatency, RunSummary
from raq.report.verdict_words import plain_ratio
from raq.statistics.proportions import same_accuracy_p
from raq.store.local import read_run
from raq.store.types import Environment
from raq.sweep.answers import Answers

DIFFERENT, NOT_SAME = "different", "not evaluated on the same images"
PLACE = ("device", "runtime", "batch_size")
MACHINE = ("cpu", "features", "cpus", "gpus")
FIRST_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")
Found = dict[str, Any]
AnswersOfRun = Mapping[str, Answers | None]


def compare(folders: Sequence[Path]) -> Found:
    """Every run against the first: machine, libraries, keys and stages, then by candidate the metric, size, speedup.

    Two values are equal if the 95% interval of their difference or ratio lies within the margins of the first run's
    `select.margin`, different if it leaves out 0 or 1, and not distinguishable otherwise. p is McNemar's, whose test
    that interval inverts.

    differs: whether a difference is real, None where samples were not the same; said: that in words; conditions: what
    else is not the same.
    """
    summaries, records = [summarise(folder) for folder in folders], [read_run(folder) for folder in folders]
    answers = [read_answers_of_run(folder) for folder in folders]
    rules = Rules.of(records[0]["settings"])
    return {
        "runs": [{key: s[key] for key in ("run", "experiment", "complete")} for s in summaries],
        "comparisons": [
            {
                **_compared(summaries[0], other, answers[0], after, rules),
                "settings": changed_keys(records[0], record),
                "stages": changed_stages(records[0], record),
            }
            for other, after, record in zip(summaries[1:], answers[1:], records[1:], strict=True)
        ],
    }


def _compared(first: RunSummary, second: RunSummary, before: AnswersOfRun, after: AnswersOfRun, rules: Rules) -> Found:
    names = [c["name"] for c in first["candidates"]]
    if first["data"]["digest"] != second["data"]["digest"]:  # of top-1, labels show whether samples are the same
        after = {name: one if one is not None and one.metric.is_top1 else None for name, one in after.items()}
    others = {c["name"]: c for c in second["candidates"]}
    return {
        "runs": [first["run"], second["run"]],
        "environment": _environment(first["environment"], second["environment"]),
        "conditions": _conditions(first, second),
        "candidates": [
            {
                "name": c["name"],
                "metric": None if c["metric"] is None else heading_of(c["metric"]["name"], ""),
                "top1": _accuracy(c["name"], before, after, rules),
                "weight_bytes": [_weight_bytes(c), _weight_bytes(others[c["name"]])],
                "latency": _latency(first, second, c["name"], rules.speed_margin),
            }
            for c in first["candidates"]
            if c["name"] in others
        ],
        "only_in_one": sorted(set(names) ^ set(others)),
    }


def _environment(first: Environment, second: Environment) -> list[str]:
    """What of machine and libraries differs, a line each."""
    before, after = dict[str, Any](first["machine"]), dict[str, Any](second["machine"])
    if any(set(machine["features"]) <= set(FIRST_FEATURES) for machine in (before, after)):
        for machine in (before, after):  # one may be of an older raq, which listed no others
            machine["features"] = [each for each in machine["features"] if each in FIRST_FEATURES]
    lines = [f"{key}: {before[key]} and {after[key]}" for key in MACHINE if before[key] != after[key]]
    libraries = sorted(set(first["versions"]) & set(second["versions"]))  # of others one of them knows nothing
    return lines + [
        f"{name}: {first['versions'].get(name)} and {second['versions'].get(name)}"
        for name in libraries
        if first["versions"].get(name) != second["versions"].get(name)
    ]


def _conditions(first: RunSummary, second: RunSummary) -> list[str]:
    """What of the two runs themselves differs or is in doubt, a line each."""
    lines = [f"{s['run']} is not complete: {s['error']}" for s in (first, second) if not s["complete"]]
    if first["experiment"] != second["experiment"]:
        lines.append(f"experiment: {first['experiment']} and {second['experiment']}")
    if first["data"]["digest"] != second["data"]["digest"]:
        lines.append("the data are not the same")
    for what, name in (("protocols", "protocol"), ("numbers of threads", "threads")):
        used = [_used(summary, name) for summary in (first, second)]
        if used[0] != used[1]:
            lines.append(f"{what}: {used[0]} and {used[1]}")
    lines += _other_runtimes(first, second)
    if None not in first["executions"].values() and first["executions"] == second["executions"]:
        lines.append("both show the same executions of every stage, so nothing can differ")
    for summary in (first, second):
        if summary["made_anew"]:
            lines.append(f"{summary['run']}: made anew since: {', '.join(summary['made_anew'])}")
        doubtful = [rounds for _, rounds in compared(summary["candidates"]) if rounds.doubt]
        if any(rounds.mostly_far for rounds in doubtful):
            lines.append(f"{summary['run']} was measured where the CPUs were far apart")
        if not all(rounds.mostly_far for rounds in doubtful):
            lines.append(f"{summary['run']} was measured on a machine that was disturbed")
    return lines


def _other_runtimes(first: RunSummary, second: RunSummary) -> list[str]:
    """The candidates of both runs that other runtimes execute, whose latencies are not compared."""
    one, other = (
        {c["name"]: sorted({str(a["runtime"]) for a in c["artifacts"] if a.get("runtime")}) for c in s["candidates"]}
        for s in (first, second)
    )
    return [
        f"{name} is executed by {' and '.join(one[name])}, and by {' and '.join(other[name])}"
        for name in one
        if one[name] and other.get(name) and one[name] != other[name]
    ]


def _used(summary: RunSummary, name: str) -> str:
    """The values of one setting of a run's measurements."""
    of = summary["measurement"] if name == "protocol" else [r for c in summary["candidates"] for r in c["latency"]]
    return ", ".join(sorted({str(entry.get(name)) for entry in of})) or "none"


def _weight_bytes(candidate: CandidateSummary) -> int | None:
    return candidate["artifacts"][0]["weight_bytes"] if candidate["artifacts"] else None


def _accuracy(name: str, before: AnswersOfRun, after: AnswersOfRun, rules: Rules) -> Found:
    """The change of one candidate's metric, more is better, where the same samples were evaluated."""
    one, other, margin = before.get(name), after.get(name), rules.accuracy_margin
    lost = None if one is None or other is None else one.worse_than(other)
    if one is None or other is None or lost is None:
        return {"points": None, "interval": None, "p": None, "differs": None, "shown": NOT_SAME, "said": NOT_SAME}
    gain, (low, high), metric = lost.value, lost.interval(), one.metric
    p = same_accuracy_p(one.right, other.right) if metric.is_top1 else None
    same = np.array_equal(one.right, other.right) if metric.is_top1 else np.array_equal(one.values, other.values)
    alike = "the same images right" if metric.is_top1 else "the same scores"
    shown = alike if same else _difference(low, high, 0.0, -margin, margin, rules.short(margin))
    form = ".2f" if metric.in_points else ".3g"
    unit = rules.unit if metric.in_points else f"{rules.unit} of {metric.name}, more is better".strip()
    said = f"{gain:+{form}} {unit} ({low:{form}} to {high:{form}}): {shown}"
    return {
        "points": gain, "interval": [low, high], "p": p, "differs": shown == DIFFERENT, "shown": shown, "said": said,
    }  # fmt: skip


def _latency(first: RunSummary, second: RunSummary, name: str, margin: float) -> list[Found]:
    """By device, runtime and batch size, the second run's speedup over the first one's."""
    found = []
    for row in _rows(first, name):
        other = next((r for r in _rows(second, name) if _place_of(r) == _place_of(row)), None)
        before, after = (_baseline(summary, row) for summary in (first, second))
        if other is None or before is None or after is None or f"{name}/{row['runtime']}" == row["baseline"]:
            continue
        ratio, interval = ratio_of_ratios(row_ratios(after, other), row_ratios(before, row))
        doubt = (
            "too few launches to tell"
            if interval is None
            else _difference(*interval, 1.0, 1 / (1 + margin), 1 + margin, f"{100 * margin:g}%")
        )
        bounds = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
        found.append(
            {
                **dict(zip(PLACE, _place_of(row), strict=True)),
                "baseline": row["baseline"],
                "speedups": [row["speedup"], other["speedup"]],
                "ratio": ratio,
                "interval": list(interval) if interval else None,
                "differs": doubt == DIFFERENT,
                "shown": doubt,
                "said": f"{plain_ratio(row['speedup'])}x and {plain_ratio(other['speedup'])}x: {ratio:.3f} times"
                f"{bounds}: {doubt}",
            }
        )
    return found


def _place_of(row: ComparedLatency) -> tuple[str, str, int]:
    return row["device"], row["runtime"], row["batch_size"]


def _difference(low: float, high: float, none: float, least: float, most: float, margin: str) -> str:
    """What an interval shows: `none` is no difference, between `least` and `most` is none that counts."""
    if least <= low and high <= most:
        return f"equal within {margin}"
    return "cannot tell" if low <= none <= high else DIFFERENT


def _rows(summary: RunSummary, name: str) -> list[ComparedLatency]:
    return [row for c in summary["candidates"] if c["name"] == name for row in c["latency"]]


def _baseline(summary: RunSummary, like: ComparedLatency) -> ComparedLatency | None:
    """The baseline's row for the same device and batch size."""
    return baseline_row(summary["candidates"], like)
