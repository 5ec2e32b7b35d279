"""The plots of what was measured, as what Plotly takes: plain values. Neither torch nor ray."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import Any, cast

from raq.experiment.metric import Metric
from raq.page.parts import Figure, name_of
from raq.page.records import artifact_of
from raq.report.claims import Rules
from raq.report.ratios import Place, baseline_row, rows_at, runtime_of
from raq.report.types import CandidateSummary, ComparedLatency
from raq.store.ptq_results import LayerLoss
from raq.store.results import ArtifactProfile

COLOURS = {
    "fp32": "#7f8ea3", "half": "#b07aa1", "ptq": "#2f7ed8", "qat": "#e07b00", "dynamic": "#2a9d8f",
    "weight_only": "#8a6d3b",
}  # fmt: skip
SYMBOLS = {
    "inductor": "circle", "eager": "diamond", "openvino": "square", "onnxruntime": "triangle-up", "executorch": "star",
    "tensorrt": "cross",
}  # fmt: skip
INT8 = ("u8", "s8", "int8")  # as oneDNN calls them
GOOD = "rgba(46, 160, 67, 0.10)"
NARROWEST, WIDEST = 10.0, 42.0  # markers, pixels across


def decision(candidates: Sequence[CandidateSummary], place: Place, rules: Rules) -> Figure | None:
    """The metric against the time of a call at a place: intervals both ways, sizes as areas, the Pareto front."""
    rows = [(candidate, row) for candidate in candidates for row in rows_at(candidate, place)]
    points = [point for candidate, row in rows if (point := _point(candidates, candidate, row, rules.metric))]
    if not points:
        return None
    data = [_trace(point) for point in points]
    front = _pareto([(point["x"], point["better"]) for point in points])
    line = sorted(({"x": p["x"], "y": p["y"]} for p, on in zip(points, front, strict=True) if on), key=lambda p: p["x"])
    data.append(
        {
            "x": [p["x"] for p in line], "y": [p["y"] for p in line], "mode": "lines", "name": "Pareto front",
            "line": {"dash": "dot", "width": 1.5, "color": "#888"}, "hoverinfo": "skip",
        }
    )  # fmt: skip
    layout = {
        "xaxis": {
            "title": {"text": f"milliseconds a call, batch {place[1]} on {plain(place[0])}"},
            **near([point["x"] for point in points]),
        },
        "yaxis": {"title": {"text": plain(rules.metric.heading)}},
        "shapes": _margin_band(candidates, rules),
    }
    best = min(points, key=lambda p: p["x"])
    says = (
        f"{len(points)} contenders at batch {place[1]} on {place[0]}; the fastest is {best['name']} with "
        f"{best['x']:.2f} ms; the table below has all numbers."
    )
    return Figure(name_of("decision", *place), says, data, layout, 430)


def _point(
    candidates: Sequence[CandidateSummary], candidate: CandidateSummary, row: ComparedLatency, metric: Metric
) -> dict[str, Any] | None:
    """Where a contender lies; None where its metric is not known. FP32 in eager mode has that of FP32."""
    judged = candidate["metric"]
    base = baseline_row(candidates, row)
    if judged is None:
        return None
    centre = row["p50_ms"]
    low, high = centre, centre
    if base is not None and row["speedup_interval"] is not None and base is not row:
        centre_of_base = row["p50_ms"] * row["speedup"]
        low, high = (centre_of_base / row["speedup_interval"][1], centre_of_base / row["speedup_interval"][0])
    artifact = artifact_of(candidate, row)
    value, interval = metric.scale * judged["value"], [metric.scale * bound for bound in judged["interval"]]
    return {
        "name": f"{candidate['name']}/{row['runtime']}", "kind": candidate["kind"], "runtime": runtime_of(row),
        "x": centre, "y": value, "better": metric.sign * value, "x_low": low, "x_high": high,
        "y_low": interval[0], "y_high": interval[1], "bytes": None if artifact is None else artifact["weight_bytes"],
        "speedup": row["speedup"], "best": row.get("speedup_over_best_fp32"),
        "metric": metric.heading,
        "largest": max([a["weight_bytes"] for c in candidates for a in c["artifacts"]], default=1),
    }  # fmt: skip


def _trace(point: dict[str, Any]) -> dict[str, Any]:
    size = NARROWEST
    if point["bytes"]:
        size = max(NARROWEST, WIDEST * (point["bytes"] / point["largest"]) ** 0.5)
    megabytes = "" if point["bytes"] is None else f"<br>weights {point['bytes'] / 1e6:.2f} MB"
    over = "" if point["best"] is None else f"<br>{point['best']:.2f} times as fast as the best FP32"
    text = (
        f"<b>{plain(point['name'])}</b><br>{point['x']:.3f} ms ({point['x_low']:.3f} to {point['x_high']:.3f})"
        f"<br>{plain(point['metric'])}: {point['y']:.4g} ({point['y_low']:.4g} to {point['y_high']:.4g}){megabytes}"
        f"<br>{point['speedup']:.2f} times as fast as eager FP32{over}"
    )
    return {
        "x": [point["x"]], "y": [point["y"]], "mode": "markers", "name": plain(point["name"]),
        "marker": {
            "size": size, "color": colour(point["kind"]), "symbol": SYMBOLS.get(point["runtime"], "x"),
            "opacity": 0.85, "line": {"width": 1, "color": "#fff"},
        },
        "error_x": _error(point, "x"), "error_y": _error(point, "y"), "hovertemplate": text + "<extra></extra>",
    }  # fmt: skip


def _error(point: dict[str, Any], axis: str) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "array": [max(0.0, point[f"{axis}_high"] - point[axis])],
        "arrayminus": [max(0.0, point[axis] - point[f"{axis}_low"])], "thickness": 1.2, "width": 3,
        "color": colour(point["kind"]),
    }  # fmt: skip


def _pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points (less time, more quality) no other one beats."""
    return [
        not any(x <= own_x and y >= own_y and (x, y) != (own_x, own_y) for x, y in points) for own_x, own_y in points
    ]


def _margin_band(candidates: Sequence[CandidateSummary], rules: Rules) -> list[dict[str, Any]]:
    """What loses no more than max_drop against FP32's estimate, as a band over the whole width."""
    base = next((c["metric"] for c in candidates if c["name"] == "fp32" and c["metric"] is not None), None)
    if base is None:
        return []
    value = rules.metric.scale * base["value"]
    worst = value - rules.metric.sign * rules.max_drop
    return [
        {
            "type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": worst, "y1": value, "fillcolor": GOOD,
            "line": {"width": 0}, "layer": "below",
        }
    ]  # fmt: skip


def speedups(candidates: Sequence[CandidateSummary], over: str) -> Figure | None:
    """Times as fast as `over` (speedup: eager FP32; speedup_over_best_fp32), by batch size, with intervals."""
    rows = [
        (f"{c['name']}/{row['runtime']}", c["kind"], row)
        for c in candidates
        for row in c["latency"]
        if row.get(over) is not None and not (over == "speedup" and row["runtime"] == "eager")
    ]
    places = sorted({(row["device"], row["batch_size"]) for _, _, row in rows})
    if not rows:
        return None
    data = []
    for name, kind in dict.fromkeys((name, kind) for name, kind, _ in rows):
        here: list[Any] = [row for other, _, row in rows if other == name]
        values = [row[over] for row in here]
        bounds = [row.get(f"{over}_interval") or [row[over]] * 2 for row in here]
        data.append(
            {
                "x": values, "y": [f"batch {row['batch_size']}, {plain(row['device'])}" for row in here],
                "mode": "markers",
                "name": plain(name),
                "marker": {"size": 9, "color": colour(kind), "symbol": SYMBOLS.get(runtime_of(here[0]), "x")},
                "error_x": {
                    "type": "data", "symmetric": False, "color": colour(kind), "thickness": 1.5, "width": 4,
                    "array": [high - value for value, (_, high) in zip(values, bounds, strict=True)],
                    "arrayminus": [value - low for value, (low, _) in zip(values, bounds, strict=True)],
                },
                "hovertemplate": f"{plain(name)}: %{{x:.3f}} times<extra></extra>",
            }
        )  # fmt: skip
    baseline = "eager FP32" if over == "speedup" else "the best FP32"
    layout = {
        "xaxis": {
            "title": {"text": f"times as fast as {baseline}"},
            **near([cast(Any, row)[over] for _, _, row in rows]),
        },
        "yaxis": {"type": "category", "autorange": "reversed"},
        "shapes": [{"type": "line", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1, "line": {"dash": "dot"}}],
        "scattermode": "group",
    }
    says = f"speed over {baseline} of {len(data)} contenders at {len(places)} batch sizes, with 95% intervals."
    return Figure(name_of(over), says, data, layout, 200 + 70 * len(places))


def rounds(candidates: Sequence[CandidateSummary], place: Place) -> Figure | None:
    """Every round's median by its number, disturbed ones open."""
    data: list[dict[str, Any]] = []
    for candidate in candidates:
        for row in rows_at(candidate, place):
            name, count = f"{candidate['name']}/{row['runtime']}", len(row["round_p50_ms"])
            numbers = list(row.get("round_number") or range(count))
            disturbed = list(row.get("round_disturbed") or [False] * count)
            launches: list[int | None] = [*row.get("round_launch", [])] or [None] * count
            own, symbol = colour(candidate["kind"]), SYMBOLS.get(runtime_of(row), "x")
            data.append(
                {
                    "x": numbers, "y": row["round_p50_ms"], "mode": "markers", "name": plain(name),
                    "marker": {
                        "size": 6, "color": own,
                        "symbol": [f"{symbol}-open" if bad else symbol for bad in disturbed],
                    },
                    "customdata": [["disturbed" if bad else "undisturbed", launch] for bad, launch in
                                   zip(disturbed, launches, strict=True)],
                    "hovertemplate": f"{plain(name)}, round %{{x}}, launch %{{customdata[1]}}: %{{y:.3f}} ms, "
                    "%{customdata[0]}<extra></extra>",
                }
            )  # fmt: skip
    if not data:
        return None
    layout = {
        "xaxis": {"title": {"text": "round"}, "tickformat": "d"},
        "yaxis": {"title": {"text": "median of a round, ms"}, "type": "log"},
    }
    count = sum(len(trace["x"]) for trace in data)
    says = f"{count} rounds of {len(data)} contenders at batch {place[1]} on {place[0]}; open markers were disturbed."
    return Figure(name_of("rounds", *place), says, data, layout)


def kernels(profile: ArtifactProfile) -> Figure:
    """The milliseconds of a call, by kernel."""
    layers = sorted(profile["layers"], key=lambda layer: layer["ms"])[-40:]
    data = [
        {"type": "bar", "orientation": "h", "x": [layer["ms"] for layer in layers],
         "y": [f"{number}. {plain(layer['name'] or layer['kernel'])}" for number, layer in enumerate(layers)],
         "marker": {"color": ["#2f7ed8" if layer["dtype"] in INT8 else "#7f8ea3" for layer in layers]},
         "customdata": [[plain(layer["kernel"]), plain(layer["dtype"])] for layer in layers], "name": "kernels",
         "hovertemplate": "%{y}: %{x:.4f} ms<br>%{customdata[0]}, %{customdata[1]}<extra></extra>"}
    ]  # fmt: skip
    layout = {"xaxis": {"title": {"text": "ms of a call"}}, "yaxis": {"automargin": True, "showticklabels": True}}
    name = name_of("kernels", profile["candidate"], profile["runtime"], profile["batch_size"])
    says = (
        f"{profile['candidate']} at batch {profile['batch_size']}: a call takes {profile['total_ms']:.3f} ms, of which "
        f"{sum(layer['ms'] for layer in profile['layers']):.3f} in kernels that multiply."
    )
    return Figure(name, says, data, layout, 140 + 16 * len(layers))


def losses(name: str, found: Sequence[LayerLoss]) -> Figure:
    """By layer in order, the SQNR of its output: it alone in integers, and with all before it."""
    layers = [f"{at}. {plain(loss['name'])}" for at, loss in enumerate(found, start=1)]
    data = [
        {"x": layers, "y": [loss["own_sqnr_db"] for loss in found], "mode": "markers", "name": "this layer alone",
         "marker": {"size": 7, "color": "#2f7ed8"}},
        {"x": layers, "y": [loss["sqnr_db"] for loss in found], "mode": "lines+markers", "name": "with all before it",
         "line": {"color": "#e07b00", "width": 1}, "marker": {"size": 4}},
    ]  # fmt: skip
    layout = {"xaxis": {"tickangle": -60, "automargin": True}, "yaxis": {"title": {"text": "SQNR of the output, dB"}}}
    least = min((loss["own_sqnr_db"] for loss in found if loss["own_sqnr_db"] is not None), default=None)
    says = f"{len(found)} layers of {name}" + ("." if least is None else f"; the worst by itself has {least:.1f} dB.")
    return Figure(name_of("losses", name), says, data, layout, 420)


def near(values: Sequence[float | None]) -> dict[str, Any]:
    """A logarithmic axis that shows these values, and of their intervals what lies near: those of two launches are
    of no use, and as wide as they like."""
    known = [value for value in values if value is not None and value > 0] or [1.0]
    low, high = min(known) / 2, max(known) * 2
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) < 5 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return {"type": "log", "range": [log10(low), log10(high)], "tickvals": ticks,
            "ticktext": [f"{tick:g}" for tick in ticks]}  # fmt: skip


def colour(kind: str) -> str:
    """Of a kind of candidate."""
    return COLOURS.get(kind, "#555555")


def plain(text: str) -> str:
    """Text that Plotly draws as it is: it reads a little HTML."""
    return escape(text, quote=False)
