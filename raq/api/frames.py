"""A run's records as tables of pandas: one row a candidate, a latency, a round, a layer. Neither torch nor ray."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from raq.artifact.runtimes import FP32_RUNTIME
from raq.plan.facts import lowered_candidate
from raq.report.types import RunSummary
from raq.store.files import Record
from raq.store.results import Lowering

if TYPE_CHECKING:
    import pandas as pd

LATENCY = ("runtime", "device", "batch_size", "threads", "p50_ms", "mean_ms", "std_ms", "speedup")
BEST = "speedup_over_best_fp32"


def candidates(summary: RunSummary) -> "pd.DataFrame":
    """A row a candidate and file: accuracy with its interval and drop, sizes in bytes, shares of the MACs in int8."""
    rows = []
    for one in summary["candidates"]:
        metric = one["metric"]
        judged: Mapping[str, Any] = {} if metric is None else metric
        own = {
            "candidate": one["name"], "kind": one["kind"], "metric": judged.get("name"), "value": judged.get("value"),
            **_bounds("value", judged.get("interval")), "drop": judged.get("drop"),
            **_bounds("drop", judged.get("drop_interval")), "samples": one["test_images"],
            "same_accuracy_p": one["same_accuracy_p"],
        }  # fmt: skip
        for file in one["artifacts"] or [cast(Any, {})]:
            rows.append(
                {
                    **own, "runtime": (file.get("runtime") or FP32_RUNTIME) if file else None,
                    "device": file.get("target"), "weight_bytes": file.get("weight_bytes"),
                    "size_bytes": file.get("size_bytes"), "resident_bytes": file.get("resident_bytes"),
                    "int8_mac_share": file.get("int8_mac_share"),
                    "executed_int8_mac_share": file.get("executed_int8_mac_share"), "path": file.get("path"),
                    "ships": one["name"] == summary["verdict"]["choice"],
                }
            )  # fmt: skip
    return _frame(rows)


def latencies(summary: RunSummary) -> "pd.DataFrame":
    """A row a contender, device and batch size: milliseconds, and how many times as fast as FP32, with 95% intervals.

    speedup: over the baseline, eager FP32; speedup_over_best_fp32: over the fastest FP32 there.
    """
    rows = []
    for one in summary["candidates"]:
        for row in one["latency"]:
            found = cast(Mapping[str, Any], row)
            rows.append(
                {
                    "candidate": one["name"], **{key: found.get(key) for key in LATENCY},
                    **_bounds("speedup", found.get("speedup_interval")), BEST: found.get(BEST),
                    **_bounds(BEST, found.get(f"{BEST}_interval")), "best_fp32": found.get("best_fp32"),
                }
            )  # fmt: skip
    return _frame(rows)


def rounds(summary: RunSummary) -> "pd.DataFrame":
    """A row a round of a contender: the median of its calls in milliseconds, which launch, whether it was disturbed."""
    rows = []
    for one in summary["candidates"]:
        for row in one["latency"]:
            count = len(row["round_p50_ms"])
            columns = zip(
                row.get("round_number") or range(count), cast(Any, row).get("round_launch") or [None] * count,
                cast(Any, row).get("round_disturbed") or [None] * count, row["round_p50_ms"], strict=True,
            )  # fmt: skip
            rows += [
                {
                    "candidate": one["name"], "runtime": row["runtime"], "device": row["device"],
                    "batch_size": row["batch_size"], "round": number, "launch": launch, "disturbed": disturbed,
                    "p50_ms": median,
                }
                for number, launch, disturbed, median in columns
            ]  # fmt: skip
    return _frame(rows)


def layers(stages: Mapping[str, Record]) -> "pd.DataFrame":
    """A row a layer of a quantized file: multiply-accumulates of a sample, int8 or why not, the kernel seen running."""
    rows = []
    for name, record in stages.items():
        candidate = lowered_candidate(name)
        if candidate is None:
            continue
        audit = cast("Lowering", record["results"]).get("audit")
        evaluated = stages.get(f"evaluate/{candidate}")
        seen: Sequence[Any] = (evaluated["results"].get("executed_layers") or []) if evaluated is not None else []
        ran = {layer["name"]: layer for layer in seen}
        for layer in audit["layers"] if audit is not None else []:
            kernel = ran.get(layer["name"], {})
            rows.append(
                {
                    "candidate": candidate, "layer": layer["name"], "macs": layer["macs"], "int8": layer["int8"],
                    "reason": layer.get("reason"), "kernel": kernel.get("kernel"), "ran_int8": kernel.get("int8"),
                }
            )  # fmt: skip
    return _frame(rows)


def _bounds(name: str, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}


def _frame(rows: Sequence[Mapping[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    found = pd.DataFrame(list(rows))
    for column in found.select_dtypes("object"):
        known = found[column].dropna()
        if not len(known) or known.map(lambda value: type(value) in (int, float)).all():
            found[column] = pd.to_numeric(found[column])  # unknown is NaN among numbers
    return found
