"""The plots of what was trained and tried: histories, calibrations, sweeps. Neither torch nor ray."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from raq.experiment.metric import Metric
from raq.experiment.sweep import METHOD
from raq.page.parts import Figure
from raq.page.plots import colour, plain
from raq.report.sweep import calibration_in_words
from raq.store.sweep_results import LayerSweepResults, PtqSweepResults, QatSweepResults

MAX_LINES, BINS = 500, 8
EFFECTS: tuple[Literal["only"], Literal["without"]] = ("only", "without")
SCALE = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"]  # viridis


def training(name: str, history: Sequence[Mapping[str, Any]], metric: Metric) -> Figure | None:
    """Loss and the metric on validation samples, by epoch."""
    if not history:
        return None
    epochs = [row["epoch"] + 1 for row in history]
    scores = [row.get("validation", row.get("validation_top1")) for row in history]
    data: list[dict[str, Any]] = [
        {"x": epochs, "y": [row["loss"] for row in history], "name": "loss", "mode": "lines+markers",
         "line": {"color": "#7f8ea3"}},
    ]  # fmt: skip
    if any(score is not None for score in scores):
        data.append(
            {"x": epochs, "y": [None if score is None else metric.scale * score for score in scores], "yaxis": "y2",
             "name": plain(f"{metric.short_name} on validation samples"), "mode": "lines+markers",
             "line": {"color": colour(name)}}
        )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": "loss"}},
        "yaxis2": {"title": {"text": plain(metric.heading)},
                   "overlaying": "y", "side": "right", "showgrid": False},
    }  # fmt: skip
    says = f"{len(history)} epochs of {name}: the loss ends at {history[-1]['loss']:.3f}."
    return Figure(f"training-{name}", says, data, layout, 320)


def calibrations(found: PtqSweepResults, metric: Metric) -> Figure:
    """The metric by calibration size, a line an observer, with the spread over seeds."""
    groups: dict[str, list[Any]] = {}
    several = [key for key in METHOD if len({row.get(key) for row in found["curve"]}) > 1]
    for row in found["curve"]:
        groups.setdefault(calibration_in_words(row, several), []).append(row)
    data = []
    for number, (name, of_name) in enumerate(groups.items()):
        rows = sorted(of_name, key=lambda row: row["size"])
        data.append(
            {
                "x": [row["size"] for row in rows], "y": [metric.scale * row["mean_value"] for row in rows],
                "mode": "lines+markers", "name": plain(name), "line": {"color": SCALE[(3 * number) % BINS]},
                "error_y": {"type": "data", "width": 3,
                            "array": [metric.scale * (row["std_value"] or 0.0) for row in rows]},
            }
        )  # fmt: skip
    base = metric.scale * found["baseline_value"]
    layout = {
        "xaxis": {"title": {"text": "calibration samples"}, "type": "log"},
        "yaxis": {"title": {"text": plain(f"{metric.short_name} on validation samples")}},
        "shapes": [_level(base)],
    }
    says = f"{len(found['curve'])} calibrations; the dotted line is FP32. Chosen: {found['choice']['why']}."
    return Figure("calibrations", says, data, layout)


def _level(value: float) -> dict[str, Any]:
    """A dotted line over the whole width."""
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value, "line": {"dash": "dot"}}


def trainings(found: QatSweepResults, metric: Metric) -> Figure | None:
    """Parallel coordinates: a line a training over the keys that were tried, coloured by its metric."""
    trials = [trial for trial in found["trials"] if trial.get("value") is not None][:MAX_LINES]
    keys = list(found["trials"][0]["config"])
    if not trials:
        return None
    values = np.array([metric.scale * (trial["value"] or 0.0) for trial in trials])
    axes = [(key, [trial["config"].get(key) for trial in trials]) for key in keys]
    places = [_positions(column) for _, column in axes] + [_positions(values.tolist())]
    bins = _bins(metric.sign * values)
    data = []
    for chosen in range(BINS):
        x: list[float | None] = []
        y: list[float | None] = []
        for at in np.flatnonzero(bins == chosen):
            x += [*range(len(places)), None]
            y += [*(column[at] for column, _ in places), None]
        if x:
            low, high = values[bins == chosen].min(), values[bins == chosen].max()
            data.append(
                {"x": x, "y": y, "mode": "lines", "line": {"color": SCALE[chosen], "width": 1.5}, "opacity": 0.8,
                 "name": f"{low:.4g} to {high:.4g}", "hoverinfo": "name"}
            )  # fmt: skip
    names = [*keys, metric.heading]
    layout = {
        "xaxis": {"tickvals": list(range(len(names))), "ticktext": [plain(name) for name in names], "showgrid": True},
        "yaxis": {"visible": False, "range": [-0.06, 1.06]},
        "annotations": [
            {"x": at, "y": place, "text": plain(text), "showarrow": False, "xanchor": "left", "xshift": 4,
             "font": {"size": 10}}
            for at, (_, ticks) in enumerate(places)
            for place, text in ticks
        ],
    }  # fmt: skip
    says = f"{len(trials)} trainings, coloured by {metric.short_name}. Chosen: {found['choice']['why']}."
    return Figure("trainings", says, data, layout, 440)


def _positions(column: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Where the values of one axis lie between 0 and 1, and what stands beside it: [(place, text), ...]."""
    known = [value for value in column if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        low, high = min(known), max(known)
        logarithmic = low > 0 and high / low > 20

        def place(value: float) -> float:
            if high == low:
                return 0.5
            return float(np.log(value / low) / np.log(high / low) if logarithmic else (value - low) / (high - low))

        unset = [(-0.05, "unset")] if len(known) < len(column) else []
        ticks = [(0.0, f"{low:.3g}"), (1.0, f"{high:.3g}")] if high > low else [(0.5, f"{low:.3g}")]
        return [-0.05 if value is None else place(value) for value in column], [*ticks, *unset]
    names = sorted({str(value) for value in column})
    at = {name: 0.5 if len(names) == 1 else number / (len(names) - 1) for number, name in enumerate(names)}
    return [at[str(value)] for value in column], [(place, name) for name, place in at.items()]


def _bins(values: Any) -> Any:
    """By value, one of BINS colours: equal shares of the trials."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return np.minimum(BINS - 1, order * BINS // max(1, len(values)))


def importance(found: QatSweepResults) -> Figure | None:
    """How much of the variance of the metric each key explains."""
    if not found["importance"]:
        return None
    shares = sorted(found["importance"].items(), key=lambda one: one[1])
    data = [
        {"type": "bar", "orientation": "h", "x": [100 * value for _, value in shares],
         "y": [plain(key) for key, _ in shares], "marker": {"color": "#2f7ed8"}, "name": "importance",
         "hovertemplate": "%{y}: %{x:.0f}%<extra></extra>"}
    ]  # fmt: skip
    layout = {"xaxis": {"title": {"text": "share of the variance of the metric, % (functional ANOVA)"}}}
    says = "; ".join(f"{key} {100 * value:.0f}%" for key, value in reversed(shares))
    return Figure("importance", says, data, layout, 120 + 32 * len(shares))


def sensitivity(found: LayerSweepResults) -> Figure | None:
    """By layer, the SQNR of the outputs with this layer alone in int8, and with all but it."""
    rows = [row for row in found["sensitivity"] if row["without"] is not None and row["only"] is not None]
    if not rows:
        return None
    data = []
    alone, left_out = ([None if (one := row[key]) is None else one["sqnr_db"] for row in rows] for key in EFFECTS)
    for values, name, own in ((alone, "this layer alone in int8", "#2f7ed8"), (left_out, "all but it", "#e07b00")):
        data.append(
            {"x": [plain(row["layer"]) for row in rows], "y": values, "mode": "markers", "name": name,
             "marker": {"color": own, "size": 7}}
        )  # fmt: skip
    everything = found["all_quantized"]["sqnr_db"]
    layout: dict[str, Any] = {
        "xaxis": {"tickangle": -60, "automargin": True}, "yaxis": {"title": {"text": "SQNR of the outputs, dB"}},
    }  # fmt: skip
    if everything is not None:
        layout["shapes"] = [_level(everything)]
    says = f"{len(rows)} layers; the dotted line is all of them in int8."
    return Figure("sensitivity", says, data, layout, 460)
