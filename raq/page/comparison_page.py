"""`raq compare --html`: which differences of runs are real, and what else is not the same. Neither torch nor ray."""

from collections.abc import Mapping, Sequence
from typing import Any

from raq.page.parts import Cell, Figure, Page, Section, Table, interval, name_of, number
from raq.page.plots import near, plain
from raq.report.terminal import clean
from raq.store.views import refused_if_damaged

Found = Mapping[str, Any]
DIFFERS, EQUAL, UNKNOWN = "#a4161a", "#2f7ed8", "#7a5200"


def page_of_comparison(given: Found) -> Page:
    """The page of what `report.comparison.compare` found."""
    found = clean(dict(given))
    first, *others = found["runs"]
    with refused_if_damaged("the comparison"):
        sections = [section for at, one in enumerate(found["comparisons"]) for section in _sections(one, at)]
    return Page(
        title=f"{first['experiment']}: raq compare",
        heading=f"{' and '.join(run['run'] for run in others)} against {first['run']}",
        facts="; ".join(
            f"{run['run']}: {run['experiment']}{'' if run['complete'] else ', NOT COMPLETE'}" for run in found["runs"]
        ),
        answer=" ".join(_answer(one) for one in found["comparisons"]),
        is_good=False,
        sections=sections,
    )


def _real(one: Found) -> list[str]:
    """The differences that are real, in words."""
    said = []
    for candidate in one["candidates"]:
        if candidate["top1"]["differs"]:
            said.append(f"{candidate['name']}: {candidate['metric'] or 'metric'} {candidate['top1']['said']}")
        said += [
            f"{candidate['name']} at batch {row['batch_size']} on {row['device']} ({row['runtime']}): {row['said']}"
            for row in candidate["latency"]
            if row["differs"]
        ]
    return said


def _answer(one: Found) -> str:
    real = _real(one)
    other = ", on another machine or with other libraries" if one["environment"] else ""
    if not real:
        return f"{one['runs'][1]}: no difference is shown{other}."
    return f"{one['runs'][1]}: {len(real)} differences are real{other}: {'; '.join(real)}."


def _sections(one: Found, at: int) -> list[Section]:
    after = one["runs"][1]
    plot = _plot(one, at)
    how = (
        "more: of the metric, in the second run; the interval is of the paired difference on the same samples.",
        "times: the second run's speedup over its baseline, against the first run's over its own: milliseconds of "
        "different days are never compared.",
    )
    found: list[Any] = [_metrics(one), *([_speeds(one), plot] if plot is not None else [])]
    if one["only_in_one"]:
        found.append([f"only in one of the two: {', '.join(one['only_in_one'])}"])
    return [
        Section(name_of("results", at, after), f"What came out: {after}", how, found),
        Section(
            name_of("changes", at, after),
            f"What is not the same: {after}",
            (
                "A stage that is shared was done once, and both runs stand on it: nothing of it can differ.",
                "One that follows is another because what it is made from is.",
            ),
            [
                [*one["environment"], *one["conditions"]] or ["machine, libraries and data are the same"],
                _keys(one),
                _stages(one),
            ],
        ),
    ]


def _metrics(one: Found) -> Table:
    rows = [
        [
            Cell(candidate["name"]), Cell(candidate["metric"] or ""), number(candidate["top1"]["points"], "+.3g"),
            interval(candidate["top1"]["interval"], ".3g"), number(candidate["top1"]["p"], ".2g"),
            Cell(candidate["top1"]["shown"]),
            *(number(None if size is None else size / 1e6) for size in candidate["weight_bytes"]),
        ]
        for candidate in one["candidates"]
    ]  # fmt: skip
    columns = ["candidate", "metric", "more", "95%", "p (McNemar)", "", "weights before, MB", "weights after, MB"]
    return Table("Metric and size", columns, rows)


def _speeds(one: Found) -> Table:
    rows = [
        [
            Cell(candidate["name"]), Cell(row["runtime"]), Cell(row["device"]), number(row["batch_size"], "d"),
            *(number(value) for value in row["speedups"]), number(row["ratio"], ".3f"),
            interval(row["interval"], ".3f"), Cell(row["shown"]),
        ]
        for candidate in one["candidates"]
        for row in candidate["latency"]
    ]  # fmt: skip
    columns = ["candidate", "runtime", "device", "batch", "speedup before", "after", "times", "95%", ""]
    return Table("Speed", columns, rows)


def _plot(one: Found, at: int) -> Figure | None:
    rows = [(candidate["name"], row) for candidate in one["candidates"] for row in candidate["latency"]]
    if not rows:
        return None
    names = [plain(f"{name}/{row['runtime']}, batch {row['batch_size']}, {row['device']}") for name, row in rows]
    bounds = [row["interval"] or [row["ratio"]] * 2 for _, row in rows]
    ratios = [row["ratio"] for _, row in rows]
    data = [
        {
            "x": ratios, "y": names, "mode": "markers", "name": "times as fast",
            "marker": {"size": 9, "color": [_colour(row) for _, row in rows]},
            "error_x": {
                "type": "data", "symmetric": False, "thickness": 1.5, "width": 4, "color": "#7f8ea3",
                "array": [high - value for value, (_, high) in zip(ratios, bounds, strict=True)],
                "arrayminus": [value - low for value, (low, _) in zip(ratios, bounds, strict=True)],
            },
            "hovertemplate": "%{y}: %{x:.3f} times<extra></extra>",
        }
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "speedup, times that of the first run"}, **near([*ratios, 1.0])},
        "yaxis": {"autorange": "reversed"},
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}],
        "showlegend": False,
    }  # fmt: skip
    says = f"{len(rows)} speedups against those of the first run, with 95% intervals; red ones differ."
    return Figure(name_of("speeds", at, one["runs"][1]), says, data, layout, 140 + 34 * len(rows))


def _colour(row: Found) -> str:
    return DIFFERS if row["differs"] else EQUAL if row["shown"].startswith("equal") else UNKNOWN


def _keys(one: Found) -> Table:
    rows = [
        [Cell(changed["key"]), *(Cell(_shown(value)) for value in changed["values"])] for changed in one["settings"]
    ]
    return Table("Keys of the experiment", ["key", "before", "after"], rows or _none(3))


def _stages(one: Found) -> Table:
    rows = [[Cell(stage["name"]), Cell(_state(stage)), Cell(stage["why"])] for stage in one["stages"]]
    return Table("Stages", ["stage", "", "why"], rows or _none(3))


def _state(stage: Mapping[str, Any]) -> str:
    return "shared" if stage["shared"] else "follows" if stage["follows"] else "another"


def _none(columns: int) -> Sequence[Sequence[Cell]]:
    return [[Cell("none"), *([Cell("")] * (columns - 1))]]


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
