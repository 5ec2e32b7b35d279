"""`raq runs --html`: experiments over time, and what changed for real from run to run. Neither torch nor ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raq.errors import UserError
from raq.experiment.metric import POINTS, heading_of
from raq.page.parts import Cell, Figure, Page, Section, Table, interval, name_of, number
from raq.page.plots import colour, near, plain
from raq.report.comparison import compare
from raq.report.runs import RunLine, run_lines
from raq.report.summary import summarise
from raq.report.terminal import clean
from raq.report.types import RunSummary
from raq.store.views import refused_if_damaged

MARKERS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon", "bowtie", "hourglass")


@dataclass(frozen=True)
class _Past:
    """A run of an experiment. summary: None where its records cannot be read or it is not complete."""

    folder: Path
    line: RunLine
    summary: RunSummary | None

    @property
    def machine(self) -> str:
        """What it was measured on, for people."""
        if self.summary is None:
            return ""
        found = self.summary["environment"]["machine"]
        return f"{found['cpu']}, {found['cpus']} CPUs"


def page_of_history(folders: Sequence[Path]) -> Page:
    """The page of these runs, oldest first."""
    past = [_read(folder, line) for folder, line in zip(folders, run_lines(folders), strict=True)]
    names = list(dict.fromkeys(run.line["experiment"] for run in past if run.line["experiment"] is not None))
    sections, worse = [], 0
    for name in names:
        own = [run for run in past if run.line["experiment"] == name]
        with refused_if_damaged(f"the runs of {name}"):
            changes = _changes(own)
            worse += sum(change["worse"] for change in changes)
            sections.append(_section(str(name), own, changes))
    unread = [run for run in past if run.line["experiment"] is None]
    if unread:
        sections.append(Section("unread", "Runs that cannot be read", (), [[run.line["why"] for run in unread]]))
    said = f"{_count(len(past), 'run')} of {_count(len(names), 'experiment')}; real changes for the worse: {worse}."
    dates = [run.line["started_at"] for run in past if run.line["started_at"]]
    return Page(
        title="raq: history",
        heading="Experiments over time",
        facts="" if not dates else f"{dates[0]} to {dates[-1]}",
        answer=said if past else "There are no runs.",
        is_good=bool(past) and not worse,
        sections=sections or [Section("none", "No runs", ("Make one with: raq run",))],
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _read(folder: Path, line: RunLine) -> _Past:
    if line["state"] != "complete":
        return _Past(folder, clean(line), None)
    try:
        return _Past(folder, clean(line), clean(summarise(folder)))
    except UserError as error:
        return _Past(folder, clean(line) | {"why": error.message, "state": "damaged"}, None)


def _changes(past: Sequence[_Past]) -> list[dict[str, Any]]:
    """What differs for real between each complete run and the one before it; worse: whether it is for the worse."""
    complete = [run for run in past if run.summary is not None]
    found = []
    for before, after in pairwise(complete):
        (one,) = clean(compare([before.folder, after.folder]))["comparisons"]
        other = bool(one["environment"])
        for candidate in one["candidates"]:
            changed = candidate["top1"]
            if changed["differs"]:
                found.append(
                    {"run": after.line["run"], "candidate": candidate["name"], "what": candidate["metric"] or "metric",
                     "value": changed["points"], "interval": changed["interval"], "worse": changed["points"] < 0,
                     "other": other}
                )  # fmt: skip
            found += [
                {"run": after.line["run"], "candidate": f"{candidate['name']}/{row['runtime']}",
                 "what": f"speed at batch {row['batch_size']} on {row['device']}, times", "value": row["ratio"],
                 "interval": row["interval"], "worse": row["ratio"] < 1, "other": other}
                for row in candidate["latency"] if row["differs"]
            ]  # fmt: skip
    return found


def _section(name: str, past: Sequence[_Past], changes: Sequence[Mapping[str, Any]]) -> Section:
    rows = [
        [
            Cell(run.line["run"]), Cell(run.line["started_at"] or ""), Cell(run.line["state"]),
            Cell(run.line["choice"] or ""), Cell(run.machine),
            Cell("" if run.summary is None else str(run.summary["environment"].get("commit") or "")[:12]),
            Cell(run.line["why"].partition(". ")[0]),
        ]
        for run in reversed(past)
    ]  # fmt: skip
    tested = [
        [
            Cell(change["run"]), Cell(change["candidate"]), Cell(change["what"]), number(change["value"], ".3g"),
            interval(change["interval"], ".3g"),
            Cell("worse" if change["worse"] else "better", None, "bad" if change["worse"] else "good"),
            Cell("other machine or libraries" if change["other"] else ""),
        ]
        for change in changes
    ]  # fmt: skip
    how = (
        "Each complete run is compared with the one before it: of the metric on the same samples, of speed by the "
        "speedup over the same baseline.",
        "Real is what a 95% interval shows and the margin does not hide; of 20 comparisons of equal runs, one may be.",
        "Dotted lines are where machine or libraries changed.",
    )
    table = Table(
        "Real changes",
        ["run", "candidate", "what", "change", "95%", "", "note"],
        tested or [[Cell("none")] + [Cell("")] * 6],
    )
    runs = Table("Runs, newest first", ["run", "started", "state", "ships", "machine", "raq", "verdict"], rows)
    plots = [plot for plot in (_metrics(name, past), _speeds(name, past)) if plot is not None]
    return Section(name_of("history", name), name, how, [*plots, table, runs])


def _drawn(past: Sequence[_Past]) -> list[tuple[_Past, RunSummary]]:
    return [(run, run.summary) for run in past if run.summary is not None]


def _metrics(name: str, past: Sequence[_Past]) -> Figure | None:
    """The metric of every candidate, run by run."""
    series: dict[str, dict[str, Any]] = {}
    heading = ""
    for run, summary in _drawn(past):
        for candidate in summary["candidates"]:
            judged = candidate["metric"]
            if judged is None:
                continue
            scale = 100 if judged["unit"] == POINTS else 1
            heading = heading_of(judged["name"], judged["unit"])
            _add(series, candidate["name"], candidate["kind"], run.line["run"], scale * judged["value"],
                 [scale * bound for bound in judged["interval"]])  # fmt: skip
    return _figure("metrics", name, past, series, heading) if series else None


def _speeds(name: str, past: Sequence[_Past]) -> Figure | None:
    """The speedup over the best FP32 of every quantized contender and batch size, run by run."""
    series: dict[str, dict[str, Any]] = {}
    for run, summary in _drawn(past):
        for candidate in summary["candidates"]:
            for row in candidate["latency"]:
                over = row.get("speedup_over_best_fp32")
                if candidate["kind"] != "fp32" and over is not None:
                    label = f"{candidate['name']}/{row['runtime']}, batch {row['batch_size']}, {row['device']}"
                    _add(series, label, candidate["kind"], run.line["run"], over,
                         row.get("speedup_over_best_fp32_interval") or [over, over])  # fmt: skip
    if not series:
        return None
    axis = near([value for own in series.values() for value in own["y"]])
    return _figure("speeds", name, past, series, "times as fast as the best FP32", axis)


def _add(
    series: dict[str, dict[str, Any]], label: str, kind: str, run: str, value: float, bounds: Sequence[float]
) -> None:
    own = series.setdefault(label, {"kind": kind, "x": [], "y": [], "above": [], "below": []})
    own["x"].append(plain(run))
    own["y"].append(value)
    own["above"].append(max(0.0, bounds[1] - value))
    own["below"].append(max(0.0, value - bounds[0]))


def _figure(
    what: str,
    name: str,
    past: Sequence[_Past],
    series: Mapping[str, Mapping[str, Any]],
    heading: str,
    axis: Mapping[str, Any] = MappingProxyType({}),
) -> Figure:
    data = [
        {
            "x": own["x"], "y": own["y"], "mode": "lines+markers", "name": plain(label),
            "line": {"color": colour(own["kind"]), "width": 1},
            "marker": {"size": 8, "symbol": MARKERS[number % len(MARKERS)]},
            "error_y": {"type": "data", "symmetric": False, "array": own["above"], "arrayminus": own["below"],
                        "width": 3, "thickness": 1},
            "hovertemplate": f"{plain(label)}<br>%{{x}}: %{{y:.4g}}<extra></extra>",
        }
        for number, (label, own) in enumerate(series.items())
    ]  # fmt: skip
    drawn = _drawn(past)
    order = [plain(run.line["run"]) for run, _ in drawn]
    shapes = [
        {"type": "line", "x0": at + 0.5, "x1": at + 0.5, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}
        for at, ((_, one), (_, other)) in enumerate(pairwise(drawn))
        if _place(one) != _place(other)
    ]
    layout = {
        "xaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": order, "showticklabels": len(order) < 25,
        },
        "yaxis": {"title": {"text": plain(heading)}, **axis}, "shapes": shapes,
    }  # fmt: skip
    says = f"{heading} of {len(series)} contenders in {len(order)} complete runs of {name}."
    return Figure(name_of(what, name), says, data, layout, 400)


def _place(summary: RunSummary) -> tuple[Any, Any]:
    """Machine and libraries."""
    return dict(summary["environment"]["machine"]), summary["environment"]["versions"]
