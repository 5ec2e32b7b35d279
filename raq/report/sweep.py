"""The terminal, for sweeps: the curve over calibration sizes, and what was chosen. Neither torch nor ray."""

from collections.abc import Collection, Sequence
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raq.experiment.metric import Metric, amount, difference, shown
from raq.experiment.sweep import (
    BIAS_CORRECTION,
    EQUALIZATION,
    LEARNED_ROUNDING,
    METHOD,
    PER_CHANNEL,
    PTQ_METHODS,
    REDUCE_RANGE,
    SIZE,
)  # fmt: skip
from raq.store.sweep_results import (
    CurveRow,
    LayerSweepResults,
    PtqSweepResults,
    QatSweepResults,
    QatTrial,
    Scored,
    as_read,
    metric_of_sweep,
)
from raq.store.types import Values


def print_sweep(console: Console, results: Values) -> None:
    """What a sweep's trials came to, a row a calibration; the chosen one is marked, failed trials are listed."""
    found, metric = cast("PtqSweepResults", as_read(results)), metric_of_sweep(results)
    config = found["choice"]["config"]
    wanted = tuple(config.get(key) for key in (*METHOD, SIZE))  # older records have fewer keys
    seeds = max(len(row["seeds"]) for row in found["curve"])
    console.print(
        f"\n{len(found['trials'])} calibrations on {found['validation_images']} validation images, "
        f"{seeds} seeds each; fp32 there: {shown(metric, found['baseline_value'])}",
        style="bold",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    several = [key for key in METHOD[2:] if len({row.get(key) for row in found["curve"]}) > 1]
    table.add_column("observer", no_wrap=not {*several} & {*PTQ_METHODS}, min_width=10)
    for name in ("images", metric.heading, "± seeds", "drop", "against the largest"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["curve"]:
        method = (row["observer"], row["percentile"], *(row.get(key) for key in METHOD[2:]))
        chosen = (*method, row["size"]) == wanted
        table.add_row(
            "▸" if chosen and console.encoding.startswith("utf") else "*" if chosen else "",
            Text(calibration_in_words(row, several)),
            str(row["size"]),
            _value(metric, row["mean_value"]),
            "" if row["std_value"] is None else _value(metric, row["std_value"]),
            difference(metric, row["drop"]),
            _lost(metric, row["against_largest"], row["against_largest_interval"]),
            style="bold" if chosen else None,
        )
    console.print(table)
    for line in (
        f"drop: {_lost_by(metric)}; against the largest: against the largest size of the same observer (95%).",
        f"{found['calibration_images']} images were read to calibrate, in {found['calibration_passes']} passes.",
    ):
        console.print(line, style="dim", highlight=False)
    for trial in found["failed"]:
        named = ", ".join(f"{key} {value}" for key, value in trial["config"].items() if value is not None)
        console.print(f"FAILED: {named}: {trial['error']}", style="bold red", markup=False, highlight=False)
    console.print(f"chosen: {found['choice']['why']}", markup=False, highlight=False)


def calibration_in_words(row: CurveRow, keys: Collection[str]) -> str:
    """A calibration's observer, and its values of these keys."""
    percentile = "" if row["percentile"] is None else f" {row['percentile']:g}"
    said = [f"{row['observer']}{percentile}"]
    if PER_CHANNEL in keys:
        said.append(f"per {'channel' if row.get(PER_CHANNEL) else 'tensor'}")
    if REDUCE_RANGE in keys:
        said.append(f"{7 if row.get(REDUCE_RANGE) else 8} bits")
    if EQUALIZATION in keys:
        said.append(f"{'not' if (extent := row.get(EQUALIZATION)) == 'none' else extent} equalized")
    if BIAS_CORRECTION in keys:
        said.append(f"biases {'' if row.get(BIAS_CORRECTION) else 'not '}corrected")
    if LEARNED_ROUNDING in keys:
        said.append(f"{row.get(LEARNED_ROUNDING)} steps learned")
    return ", ".join(said)


def _lost(metric: Metric, lost: float | None, interval: Sequence[float] | None) -> str:
    if lost is None or interval is None:
        return ""
    low, high = (difference(metric, bound) for bound in interval)
    own = difference(metric, lost)
    return f"{own} ({low} to {high})" if interval[0] != interval[1] else own


def _lost_by(metric: Metric) -> str:
    return "points lost against fp32" if metric.in_points else f"how much worse than fp32, in {metric.short_name}"


def _value(metric: Metric, value: float) -> str:
    """A value of the metric below that heading."""
    return f"{100 * value:.2f}" if metric.in_points else f"{value:.4g}"


MAX_TRIALS = 20  # on the terminal; the table of all is in trials.csv


def _table_of_trainings(
    ranked: Sequence[QatTrial], keys: Sequence[str], chosen: int, mark: str, metric: Metric
) -> Table:
    """The trials in this order, with the keys that were tried; the chosen one is marked."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for name in ("trial", metric.heading, "epochs", *keys):
        table.add_column(_heading(name), justify="right", no_wrap=True)
    for trial in ranked:
        interval = trial.get("value_interval")
        table.add_row(
            mark if trial["number"] == chosen else "",
            f"{trial['number'] + 1}{'†' if trial['front'] else ''}",
            "" if (value := trial["value"]) is None else _value(metric, value),
            f"{trial['epochs']}{' ended' if interval is None else ''}",
            *("unset" if trial["config"][key] is None else _short(trial["config"][key]) for key in keys),
            style="bold" if trial["number"] == chosen else "dim" if interval is None else None,
        )
    return table


def print_search(console: Console, results: Values) -> None:
    """What a search for a training came to: the trials ranked, early stops, the Pareto front, which keys mattered."""
    found, metric = cast("QatSweepResults", as_read(results)), metric_of_sweep(results)
    trials, choice = found["trials"], found["choice"]
    states = [trial["state"] for trial in trials]
    stopped = f", {states.count('stopped')} ended early" if "stopped" in states else ""
    console.print(
        f"\n{len(trials)} trainings on {found['validation_images']} validation images ({found['search']} search"
        f"{stopped}); fp32 there: {shown(metric, found['baseline_value'])}",
        style="bold",
        highlight=False,
    )
    ranked = sorted(
        (t for t in trials if t["state"] != "failed"),
        key=lambda t: (t["state"] != "finished", t["value"] is None, -metric.sign * (t["value"] or 0)),
    )
    mark = "▸" if console.encoding.startswith("utf") else "*"
    console.print(_table_of_trainings(ranked[:MAX_TRIALS], list(trials[0]["config"]), choice["number"], mark, metric))
    if len(ranked) > MAX_TRIALS:
        console.print(f"and {len(ranked) - MAX_TRIALS} more: see trials.csv", style="dim", highlight=False)
    mattered = found["importance"]
    widest = max(high - low for t in trials for low, high in [t.get("value_interval") or (0.0, 0.0)])
    lines = [
        f"{metric.name} has 95% intervals of ±{_half(metric, widest)} at most; ended: early.",
        f"†: no other has both a {'higher' if metric.greater_is_better else 'lower'} {metric.name} and fewer epochs. "
        "Trial 1 is the training as written.",
        f"{found['epochs_trained']} of {found['epochs_asked']} epochs were needed.",
        "what mattered: "
        + (
            "too few trials to tell"
            if mattered is None
            else ", ".join(f"{key} {100 * value:.0f}%" for key, value in mattered.items())
            + f" of the variance of {metric.name} (functional ANOVA)"
        ),
    ]
    for line in lines:
        console.print(line, style="dim", highlight=False)
    for trial in (t for t in trials if t["state"] == "failed"):
        said = ", ".join(f"{key} {value}" for key, value in trial["config"].items())
        console.print(f"FAILED: {said}: {trial['error']}", style="bold red", markup=False, highlight=False)
    console.print(f"chosen: {choice['why']}", markup=False, highlight=False)


def _half(metric: Metric, width: float) -> str:
    return amount(metric, 50 * width, ".1f") if metric.in_points else amount(metric, width / 2, ".2g")


def _heading(name: str) -> str:
    """A key on several lines, none longer than a column of numbers."""
    parts = name.split("_")
    return "\n".join(part if len(part) <= HEADING else f"{part[:7]}-\n{part[7:]}" for part in parts)


def _short(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


HEADING = 9
MAX_LAYERS, MAX_NAMED = 12, 8


def print_layers(console: Console, results: Values) -> None:
    """Which layers quantization hurts, the most hurt ones first, and the configurations that were chosen."""
    found, metric = cast("LayerSweepResults", as_read(results)), metric_of_sweep(results)
    everything = found["all_quantized"]
    console.print(
        f"\n{len(found['trials'])} configurations of int8 and float layers on {found['validation_images']} validation "
        f"images (fp32: {shown(metric, found['baseline_value'])}); all in int8: {shown(metric, everything['value'])} "
        f"(drop {_drop(metric, everything)}), {_db(everything['sqnr_db'])} dB",
        style="bold",
        highlight=False,
    )
    known = [
        (row, left_out, alone)
        for row in found["sensitivity"]
        if (left_out := row["without"]) is not None and (alone := row["only"]) is not None
    ]
    ranked = sorted(known, key=lambda one: -(one[1]["sqnr_db"] or 0))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for name in ("MACs %", "drop in float", "dB in float", "drop alone", "dB alone"):
        table.add_column(name, justify="right")
    for row, left_out, alone in ranked[:MAX_LAYERS]:
        table.add_row(
            Text(row["layer"]),
            f"{100 * row['mac_share']:.1f}",
            difference(metric, left_out["drop"]),
            _db(left_out["sqnr_db"]),
            difference(metric, alone["drop"]),
            _db(alone["sqnr_db"]),
        )
    console.print(table)
    console.print(
        f"the {len(ranked[:MAX_LAYERS])} of {len(known)} layers that matter most. in float: all others in int8; "
        "alone: the only one in int8. dB: SQNR of the outputs.",
        style="dim",
        highlight=False,
    )
    for number, chosen in enumerate(found["choice"]["mixtures"], start=1):
        names = chosen["layers"].split()
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        console.print(
            f"mixed-{number}: drop {_drop(metric, chosen)}, {_db(chosen['sqnr_db'])} dB, "
            f"{100 * chosen['float_mac_share']:.1f}% of the MACs in float: {', '.join(names[:MAX_NAMED])}{more}",
            markup=False,
            highlight=False,
        )
    console.print(f"chosen: {found['choice']['why']}", markup=False, highlight=False)


def _drop(metric: Metric, row: Scored) -> str:
    return _lost(metric, row["drop"], row["drop_interval"])


def _db(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"
