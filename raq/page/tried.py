"""Sections of what was trained and tried: histories and sweeps. Neither torch nor ray."""

from typing import Any, cast

from raq.page import trial_plots
from raq.page.parts import Cell, Section, Table, number
from raq.page.records import RunRecords
from raq.store.sweep_results import LayerSweepResults, PtqSweepResults, QatSweepResults, as_read, metric_of_sweep


def trainings(run: RunRecords) -> Section | None:
    """The histories of FP32 and QAT."""
    metric = run.rules.metric
    named = [(name, run.stages.get(name)) for name in ("train", "qat")]
    plots = [
        trial_plots.training("fp32" if name == "train" else name, record["results"].get("history") or [], metric)
        for name, record in named
        if record is not None
    ]
    found = [plot for plot in plots if plot is not None]
    how = ("Validation samples are a part of the training split that is not trained on; the best epoch is kept.",)
    return Section("trainings", "Training", how, found, is_open=False) if found else None


def calibrations(run: RunRecords) -> Section | None:
    """The sweep of calibrations."""
    results = run.summary.get("sweep")
    if results is None:
        return None
    plot = trial_plots.calibrations(cast("PtqSweepResults", as_read(results)), metric_of_sweep(results))
    how = (
        "Points are means over seeds, on validation samples; bars are one standard deviation of the seeds.",
        "The smallest size that is shown to lose next to nothing against the largest is chosen.",
    )
    return Section("calibrations", "Calibration", how, [plot])


def search(run: RunRecords) -> Section | None:
    """The search for a training."""
    results = run.summary.get("qat_sweep")
    if results is None:
        return None
    found, metric = cast("QatSweepResults", as_read(results)), metric_of_sweep(results)
    plots = [plot for plot in (trial_plots.trainings(found, metric), trial_plots.importance(found)) if plot is not None]
    keys = list(found["trials"][0]["config"])
    rows = [
        [
            number(trial["number"] + 1, "d", "chosen" if trial["number"] == found["choice"]["number"] else ""),
            Cell(trial["state"]),
            number(None if (value := trial.get("value")) is None else metric.scale * value, ".4g"),
            number(trial.get("epochs"), "d"), *(_setting(trial["config"].get(key)) for key in keys),
        ]
        for trial in found["trials"]
    ]  # fmt: skip
    columns = ["trial", "state", metric.heading, "epochs", *keys]
    how = (
        "Each line is a training: where it crosses an axis is its value there; yellow is best.",
        "Trial 1 is the training as written. A trial that was not among the better ones ended early.",
    )
    return Section("search", "Search for a training", how, [*plots, Table("Trainings", columns, rows)])


def _setting(value: Any) -> Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return number(value, ".4g")
    return Cell("unset" if value is None else str(value))


def sensitivity(run: RunRecords) -> Section | None:
    """The search for layers to leave in float."""
    results = run.summary.get("layer_sweep")
    if results is None:
        return None
    found = cast("LayerSweepResults", as_read(results))
    plot = trial_plots.sensitivity(found)
    chosen = [
        f"mixed-{at}: {100 * one['float_mac_share']:.1f}% of the MACs in float: {', '.join(one['layers'].split())}"
        for at, one in enumerate(found["choice"]["mixtures"], start=1)
    ]
    how = (
        "A layer whose blue point is low makes much noise alone; one whose orange point is high takes much away if "
        "left in float.",
    )
    parts: list[Any] = [*([plot] if plot is not None else []), [*chosen, f"chosen: {found['choice']['why']}"]]
    return Section("sensitivity", "Layers that quantization hurts", how, parts)
