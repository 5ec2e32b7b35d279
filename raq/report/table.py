"""The table of candidates: sizes, accuracies, latencies. Neither torch nor ray."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from raq.experiment.metric import POINTS, TOP1, heading_of
from raq.report.types import Artifact, CandidateSummary, ComparedLatency, RunSummary
from raq.report.verdict_words import SMALL_RATIO
from raq.store.results import Throughput

MAX_WIDTH = 10_000  # that no table has


def fits(console: Console, summary: RunSummary, keys: Sequence[tuple[str, int]]) -> bool:
    """Whether the table with these latencies is no wider than the terminal."""
    table = table_of_candidates(summary, keys)
    return Measurement.get(console, console.options.update(width=MAX_WIDTH), table).maximum <= console.width


def table_of_candidates(summary: RunSummary, keys: Sequence[tuple[str, int]]) -> Table:
    """Candidates by runtime, with the latencies of these devices and batch sizes."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name, justify in (
        ("candidate", "left"),
        ("MB", "right"),
        (heading(summary), "right"),
        ("drop", "right"),
        ("int8", "right"),
    ):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for device, size in keys:
        table.add_column(f"{device}, batch {size}\nms, over eager,\nover best FP32", justify="right", no_wrap=True)
    for candidate in summary["candidates"]:
        for runtime in dict.fromkeys(row["runtime"] for row in candidate["latency"]) or [""]:
            table.add_row(*_row(candidate, runtime, keys))
    return table


def _row(candidate: CandidateSummary, runtime: str, keys: Sequence[tuple[str, int]]) -> list[str]:
    """One candidate in one runtime. Size, accuracy and drop are the artifact's, so eager has none of its own."""
    eager = runtime.startswith("eager")
    artifact = candidate["artifacts"][0] if candidate["artifacts"] and not eager else None
    cells = [f"{candidate['name']}\n{runtime}"]
    cells.append(f"{artifact['weight_bytes'] / 1e6:.2f}\n{artifact['size_bytes'] / 1e6:.2f}" if artifact else "")
    cells += ["", ""] if eager else _accuracy(candidate)
    cells.append(_share(artifact) if artifact and candidate["kind"] not in ("fp32", "half") else "")
    for device, size in keys:
        rows = [
            r for r in candidate["latency"] if (r["runtime"], r["device"], r["batch_size"]) == (runtime, device, size)
        ]
        cells.append(_latency(rows[0], candidate["kind"] != "fp32") if rows else "")
    return cells


def heading(summary: RunSummary) -> str:
    """What accuracies are, above their column."""
    known = next((c["metric"] for c in summary["candidates"] if c["metric"] is not None), None)
    return TOP1.heading if known is None else heading_of(known["name"], known["unit"])


def _accuracy(candidate: CandidateSummary) -> list[str]:
    """The metric and what it loses, each with its interval below; empty where it is not known."""
    metric = candidate["metric"]
    if metric is None:
        return ["", ""]
    drop, interval = metric["drop"], metric["drop_interval"]
    drops = candidate["kind"] != "fp32" and drop is not None and interval is not None
    if metric["unit"] == POINTS:
        value = f"{100 * metric['value']:.2f}\n{_interval(metric['interval'], 100, 1)}"
        return [value, f"{drop:.2f}\n{_drop_interval(interval or ())}" if drops else ""]
    low, high = metric["interval"]
    value = f"{metric['value']:.4g}\n{low:.3g}..{high:.3g}"
    return [value, f"{drop:.2g}\n{interval[0]:.2g}..{interval[1]:.2g}" if drops and interval else ""]


def _share(artifact: Artifact) -> str:
    weights = artifact.get("int8_weight_mac_share")
    if weights is not None:
        return f"{100 * weights:.0f}%\nweights"
    share = artifact["int8_mac_share"]
    return "?" if share is None else f"{100 * share:.0f}%"


def _latency(row: ComparedLatency, quantized: bool) -> str:
    """Milliseconds, the speedup over the baseline and, of a quantized candidate, that over the best FP32."""
    digits = 1 if row["mean_ms"] >= 100 else 2
    spread = "" if row["std_ms"] is None else f" ± {row['std_ms']:.{digits}f}"
    lines = [f"{row['mean_ms']:.{digits}f}{spread}", _speedup(row["speedup"], row["speedup_interval"])]
    if quantized and row.get("best_fp32"):
        lines.append(_speedup(row["speedup_over_best_fp32"], row["speedup_over_best_fp32_interval"]))
    return "\n".join(lines)


def _drop_interval(interval: Sequence[float]) -> str:
    """In points, as many digits as its bounds need to differ."""
    return _interval(interval, 1, 2 if interval[1] - interval[0] < 1 else 1)


def _speedup(value: float | None, interval: Sequence[float] | None) -> str:
    """A ratio with its interval, as many digits as a column has room for."""
    if value is None:
        return ""
    if value < SMALL_RATIO:  # as a ratio it would be 0.00
        return f"{1 / value:.0f} times slower"
    digits = 2 if max(value, *(interval or [value])) < 10 else 1
    bounds = f" {_interval(interval, 1, digits)}" if interval and interval[0] != interval[1] else ""
    return f"{value:.{digits}f}{bounds}"


def _interval(interval: Sequence[float], scale: float, digits: int) -> str:
    return f"{scale * interval[0]:.{digits}f}..{scale * interval[1]:.{digits}f}"


def table_of_throughput(rows: Sequence[Throughput]) -> Table:
    """Images a second of every contender that was measured in several processes at once."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    counts = sorted({row["streams"] for row in rows})
    table.add_column(f"throughput, {' or '.join(map(str, counts))} streams", overflow="fold")
    for name in ("batch", "images/s", f"over {rows[0]['baseline']}", "over best FP32"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row["batch_size"]):
        contender = f"{row['candidate']}/{row['runtime']}"
        over_baseline = _speedup(row["speedup"], row["speedup_interval"]) if contender != row["baseline"] else ""
        best = _speedup(row["speedup_over_best_fp32"], row["speedup_over_best_fp32_interval"])
        over_best = best if contender != row["best_fp32"] else ""
        table.add_row(contender, str(row["batch_size"]), f"{row['images_per_s']:.0f}", over_baseline, over_best)
    return table
