"""What a stage found, in one line: a function a kind of stage, named in plan/kinds.py. Neither torch nor ray."""

from collections.abc import Mapping
from typing import Any

from raq.experiment.metric import Metric, shown

Results = Mapping[str, Any]


def epoch(row: Results) -> str:
    """A row of a training's history."""
    validation = "" if row["validation_top1"] is None else f", validation {100 * row['validation_top1']:.1f}%"
    if row["validation_top1"] is None and row.get("validation") is not None:
        validation = f", validation {row['validation']:.4g}"
    speed = f"{row['images_per_s']:.0f} images/s at {row['side']} pixels"
    if row["side"] is None:
        speed = f"{row['images_per_s']:.0f} samples/s"
    return f"epoch {row['epoch'] + 1}: loss {row['loss']:.3f}{validation}, {speed}"


def training(results: Results) -> str:
    """A training: how long, how it ended, how fast, and what was done to its weights before it."""
    if not results.get("history"):
        return weights(results)
    last = results["history"][-1]
    kept = "; none was as good as its start, which is kept" if results.get("best_epoch") == -1 else ""
    names = results["history"][0].get("rescaled_layers") or ()
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    scaled = f"; rescaled before it: {names[-1]}{others}" if names else ""
    return (
        f"{len(results['history'])} epochs, loss {last['loss']:.3f}, {last['images_per_s']:.0f} images/s{kept}{scaled}"
    )


def weights(results: Results) -> str:
    """The size of what was made."""
    return f"{results['weight_bytes'] / 1e6:.2f} MB of weights"


def sweep(results: Results) -> str:
    """How many trials there were, and what was chosen."""
    count = sum("error" in trial for trial in (*results["trials"], *results.get("failed", [])))
    failed = f", {count} failed" if count else ""
    return f"{len(results['trials'])} trials{failed}; {results['choice']['why']}"


def artifact(results: Results) -> str:
    """The size of the file, and how much of it computes in int8."""
    int8 = f", {100 * results['int8_mac_share']:.1f}% of MACs in int8" if results["int8_mac_share"] else ""
    return f"{results['size_bytes'] / 1e6:.2f} MB{int8}"


def accuracy(results: Results) -> str:
    """The metric."""
    if results.get("metric") is not None:
        metric = Metric.model_validate(results["metric"])
        return f"{metric.name} {shown(metric, results['value'])} on {results['test_images']}"
    return f"top-1 {100 * results['top1']:.2f}% of {results['test_images']}"


def latencies(results: Results) -> str:
    """How many latencies were measured."""
    return f"{len(results['rows'])} latencies"
