"""The model card of an exported candidate: what it is, how to use it, what is known of it and what is not.

Markdown, from records alone. Neither torch nor ray.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raq.bundle.facts import Exported
from raq.experiment.metric import Metric
from raq.report.bench import disturbed_warning
from raq.report.markdown import block, code, escaped, table
from raq.report.ratios import baseline_row, compared
from raq.report.terminal import printable
from raq.report.types import CandidateSummary, ComparedLatency
from raq.report.verdict_words import SMALL_RATIO
from raq.store.views import refused_if_damaged


def card(found: Exported, about: Mapping[str, Any]) -> str:
    """The card. about: metadata.json."""
    sections = (_top, _use, _accuracy, _latency, _proof, _limits, _again)
    with refused_if_damaged(f"{found.summary['run']}"):
        lines = [line for section in sections for line in (*section(found, about), "")]
    return "\n".join(lines).rstrip() + "\n"


def _top(found: Exported, about: Mapping[str, Any]) -> list[str]:
    candidate, summary = found.candidate, found.summary
    results, executed = found.lowering, found.evaluation.get("executed_int8_mac_share")
    note = results.get("note")
    settings = found.run["settings"]
    rows = [
        ["model", escaped((settings.get("model") or {}).get("name", "unknown"))],
        ["candidate", f"{escaped(candidate['name'])} ({escaped(candidate['kind'])})"],
        ["runtime", f"{escaped(about['runtime'])} on {escaped(about['device'])}"],
        ["weights, file", f"{results['weight_bytes'] / 1e6:.2f} MB, {results['size_bytes'] / 1e6:.2f} MB"],
        ["seen in int8 kernels", "not known" if executed is None else f"{100 * executed:.1f}% of multiply-accumulates"],
        *([["arithmetic", escaped(note)]] if note else []),
        ["data", escaped((settings.get("data") or {}).get("name", "unknown"))],
        ["SHA-256", code(about["sha256"])],
        ["run", escaped(summary["run"])],
    ]
    return [
        f"# {escaped(summary['experiment'])}: {escaped(candidate['name'])}",
        "",
        f"The verdict of its run: {escaped(summary['verdict']['why'])}",
        "",
        *table(["", ""], rows),
    ]


def _use(found: Exported, about: Mapping[str, Any]) -> list[str]:
    lines = ["from run import load", "model = load()"]
    names = [f"input_{number}" for number in range(len(about["inputs"]))]
    shapes = [printable(f"{one['dtype']} [{', '.join(map(str, ('n', *one['shape'])))}]") for one in about["inputs"]]
    scaling = about["normalisation"]
    if scaling is not None:
        column = f"np.float32({{}}).reshape({len(scaling['mean'])}, 1, 1)"
        lines = [
            "import numpy as np", *lines, f"# pixels: uint8 {shapes[0].partition(' ')[2]}, channels first",
            f"mean, std = {column.format(scaling['mean'])}, {column.format(scaling['std'])}",
            f"{names[0]} = (pixels.astype(np.float32) / {scaling['scale']} - mean) / std",
        ]  # fmt: skip
    else:
        lines += [
            f"# {name}: {printable(one['name'])}, {shape}"
            for name, one, shape in zip(names, about["inputs"], shapes, strict=True)
        ]
    lines.append(f"output = model({', '.join(names)})")
    if about["classes"]:
        lines.append("classes = output.argmax(1)")
    return [
        "## Use", "",
        *block("pip install -r requirements.txt\npython verify.py    # the same file, and the same outputs?", "sh"), "",
        *block("\n".join(lines), "python"), "",
        f"`load()` uses {about['threads']} threads, as it was {'measured' if found.threads_measured else 'evaluated'}; "
        f"`load(threads=4)` others. Inputs that vary in "
        "size, and their ranges, are in `metadata.json`.",
    ]  # fmt: skip


def _accuracy(found: Exported, about: Mapping[str, Any]) -> list[str]:
    judged, metric = found.candidate["metric"], found.asked.metric
    if judged is None:
        return ["## Accuracy", "", "Not known."]
    base = next((one for one in found.summary["candidates"] if one["kind"] == "fp32"), None)
    rows = [_judged(base, metric)] if base is not None and base is not found.candidate else []
    rows.append(_judged(found.candidate, metric))
    p = found.candidate["same_accuracy_p"]
    test = "" if p is None else f" McNemar's test (score) that both are equally accurate: p = {p:.2g}."
    unit = "points" if metric.in_points else metric.unit or "units of the metric"
    return [
        "## Accuracy", "",
        *table(["", f"{escaped(metric.heading)} (95%)", f"worse than fp32, {escaped(unit)} (95%)"], rows), "",
        f"On all {found.candidate['test_images']} samples of the test split.{test}",
    ]  # fmt: skip


def _judged(candidate: CandidateSummary, metric: Metric) -> list[str]:
    judged = candidate["metric"]
    name = escaped(candidate["name"])
    if judged is None:
        return [name, "not known", ""]
    digits = ".2f" if metric.in_points else ".4g"
    low, high = (metric.scale * bound for bound in judged["interval"])
    drop, bounds = judged["drop"], judged["drop_interval"]
    lost = "" if drop is None or bounds is None or candidate["kind"] == "fp32" else _with(drop, bounds, ".2f")
    return [name, f"{metric.scale * judged['value']:{digits}} ({low:{digits}} to {high:{digits}})", lost]


def _with(value: float, bounds: Sequence[float] | None, digits: str) -> str:
    return f"{value:{digits}}" + ("" if bounds is None else f" ({bounds[0]:{digits}} to {bounds[1]:{digits}})")


def _way(row: ComparedLatency) -> str:
    """How it was called, of GPUs."""
    return escaped(" ".join(["", *row["runtime"].split("+")[1:]]))


def _latency(found: Exported, about: Mapping[str, Any]) -> list[str]:
    machine = found.summary["environment"]["machine"]
    rows = [
        [
            f"{row['batch_size']}{_way(row)}", f"{row['p50_ms']:.3f}", _times(row["speedup"], row["speedup_interval"]),
            _times(row.get("speedup_over_best_fp32"), row.get("speedup_over_best_fp32_interval")),
            escaped(row.get("best_fp32") or ""), _eager(found, row),
        ]
        for row in found.latency
    ]  # fmt: skip
    if not rows:
        return ["## Speed", "", "Not measured."]
    columns = [
        "batch",
        "ms a call",
        "times as fast as eager FP32 (95%)",
        "as the best FP32 (95%)",
        "which is",
        "eager FP32, ms",
    ]
    warning = disturbed_warning(compared(found.summary["candidates"]))
    return [
        "## Speed", "",
        *([escaped(warning), ""] if warning else []), *table(columns, rows), "",
        f"On {escaped(machine['cpu'])}, {machine['cpus']} CPUs, with {about['threads']} threads: medians of rounds in "
        "which all contenders took turns. Milliseconds of one machine say little of another's: measure yours.",
    ]  # fmt: skip


def _eager(found: Exported, row: ComparedLatency) -> str:
    base = baseline_row(found.summary["candidates"], row)
    return "" if base is None else f"{base['p50_ms']:.3f}"


def _times(value: float | None, bounds: Sequence[float] | None) -> str:
    if value is None:
        return "not known"
    return _with(value, bounds, ".2f" if value >= SMALL_RATIO else ".2g") + ("" if bounds else " (no interval)")


def _proof(found: Exported, about: Mapping[str, Any]) -> list[str]:
    rows = []
    for row in found.candidate["parity"]:
        value = row["top1"] if row["top1"] is not None else row.get("value")
        distance = "equal" if row["equal"] else "" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        shown = "" if value is None or not math.isfinite(value) else f"{value:.4f}"
        rows.append([escaped(row["step"]), escaped(row["against"] or ""), distance, shown, str(row["images"])])
    if not rows:
        return ["## How it was proven", "", "There is no chain of proofs in its records."]
    return [
        "## How it was proven", "",
        "Each step, from the FP32 network to this file, computed the same test samples as the step before it; the last "
        "is this file, in a process without raq.", "",
        *table(["step", "against", "SQNR, dB", "metric", "samples"], rows),
    ]  # fmt: skip


def _limits(found: Exported, about: Mapping[str, Any]) -> list[str]:
    said = [
        "Accuracy is that of one test split; of other data nothing is known.",
        f"`verify.py` compares {about['examples']['count']} stored test samples with what this file gave for them on "
        f"{escaped(about['examples']['cpu'] or 'an unknown CPU')}. Another kind of CPU may use other kernels, which "
        "round otherwise: `--min-sqnr-db` says what is near enough.",
        "The stored samples are of the test split, and `records/` and `experiment.yaml` name machines and folders: "
        "whoever gets this folder gets them.",
    ]
    if about["made_on"] is not None:
        said.append(
            f"The file is native code, made on {escaped(about['made_on'])}: it runs on CPUs that have its instruction "
            "sets. Load it only if you trust whoever gave it to you."
        )
    if found.asked.device == "cuda":
        said.append(
            "The file is for one kind of GPU, and for one version of the libraries in `requirements.txt`. It holds "
            "native code: load it only if you trust whoever gave it to you."
        )
    if not found.summary["complete"]:
        said.append("The run was not complete when this was exported.")
    return ["## Limits", "", *(f"- {line}" for line in said)]


def _again(found: Exported, about: Mapping[str, Any]) -> list[str]:
    commit = found.summary["environment"].get("commit")
    return [
        "## Again", "",
        f"`experiment.yaml` has the settings, `records/` what raq {escaped(about['raq'] or '')}"
        f"{'' if commit is None else f' ({escaped(commit)})'} found. With the same data and code, "
        "from the folder in which its functions are: `raq run experiment.yaml`.",
    ]  # fmt: skip
