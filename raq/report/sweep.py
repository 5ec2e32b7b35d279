"""The terminal, for sweeps: the curve over calibration sizes, and what was chosen. Neither torch nor ray."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raq.sweeps import OBSERVER, PERCENTILE, SIZE


def print_sweep(console: Console, found: Mapping[str, Any]) -> None:
    """What a sweep's trials came to, a row a calibration; the chosen one is marked, trials that failed are told."""
    config = found["choice"]["config"]
    wanted = (config[OBSERVER], config[PERCENTILE], config[SIZE])
    seeds = max(len(row["seeds"]) for row in found["curve"])
    console.print(
        f"\n{len(found['trials'])} calibrations on {found['validation_images']} validation images, "
        f"{seeds} seeds each; fp32 there: {100 * found['baseline_top1']:.2f}%",
        style="bold",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("observer", no_wrap=True)
    for name in ("images", "top-1 %", "± seeds", "drop", "against the largest"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["curve"]:
        percentile = "" if row["percentile"] is None else f" {row['percentile']:g}"
        chosen = (row["observer"], row["percentile"], row["size"]) == wanted
        table.add_row(
            "▸" if chosen and console.encoding.startswith("utf") else "*" if chosen else "",
            Text(f"{row['observer']}{percentile}"),
            str(row["size"]),
            f"{100 * row['mean_top1']:.2f}",
            "" if row["std_top1"] is None else f"{100 * row['std_top1']:.2f}",
            f"{row['drop_points']:.2f}",
            _lost(row["against_largest"], row["against_largest_interval"]),
            style="bold" if chosen else None,
        )
    console.print(table)
    for line in (
        "drop: points lost against fp32; against the largest: against the largest size of the same observer (95%).",
        f"{found['calibration_images']} images were read to calibrate, in {found['calibration_passes']} passes.",
    ):
        console.print(line, style="dim", highlight=False)
    for trial in found["failed"]:
        said = ", ".join(f"{key} {value}" for key, value in trial["config"].items() if value is not None)
        console.print(f"FAILED: {said}: {trial['error']}", style="bold red", markup=False, highlight=False)
    console.print(f"chosen: {found['choice']['why']}", markup=False, highlight=False)


def _lost(points: float | None, interval: Sequence[float] | None) -> str:
    if points is None or interval is None:
        return ""
    return f"{points:.2f} ({interval[0]:.2f} to {interval[1]:.2f})" if interval[0] != interval[1] else f"{points:.2f}"
