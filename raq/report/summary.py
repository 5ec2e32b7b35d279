"""A run as one plain value, from its records alone: candidates, intervals, verdict. What `raq show --json` prints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raq.bench.statistics import (
    SIGNIFICANT,
    Ratios,
    calm_ratios,
    paired_drop,
    paired_ratio,
    proportion_interval,
    same_accuracy_p,
)
from raq.errors import UserError
from raq.experiment import FILE_OF_RUNTIME, kind_of
from raq.plan import why_not_lowered
from raq.records import Record, Store, read_run
from raq.stores import store_of

Summary = dict[str, Any]
PREDICTIONS = "predictions.npy"
MAX_PREDICTIONS_BYTES = 4_000_000_000


def summarise(run_folder: Path) -> Summary:
    """The summary of a run; what is not there (yet) is None.

    Raises UserError if a record is damaged.
    """
    run = read_run(run_folder)
    store = store_of(run_folder)
    stages = {name: store.read(stage["kind"], stage["fingerprint"]) for name, stage in run["stages"].items()}
    settings = run["settings"]
    names = [name.removeprefix("evaluate/") for name in run["stages"] if name.startswith("evaluate/")]
    predicted = predictions_of(run_folder)
    right = {n: None if predicted.get(n) is None else predicted[n][0] == predicted[n][1] for n in names}
    benches: list[Record] = [r for name, r in stages.items() if r is not None and name.startswith("bench/")]
    environment = benches[0]["environment"] if benches else run["environment"]  # of where it was measured
    candidates = [_candidate(name, settings, stages, right, store, environment["machine"]) for name in names]
    complete = bool(run["complete"]) and all(stages.values())
    return {
        "run": run["id"],
        "experiment": run["experiment"],
        "complete": complete,
        "error": run["error"],
        "environment": environment,
        "data": run["data"],
        "candidates": candidates,
        "sweep": _sweep(stages.get("sweep/ptq")),
        "qat_sweep": _sweep(stages.get("sweep/qat")),
        "layer_sweep": _sweep(stages.get("sweep/layers")),
        "measurement": [
            {key: r["results"].get(key) for key in ("protocol", "stopped_by", "elapsed_s", "launches")}
            | {"device": r["settings"]["device"], "noise": _noise(r["results"].get("noise") or {})}
            for r in benches
        ],
        "verdict": _verdict(candidates, *_selection(settings))
        if complete
        else {"choice": None, "why": f"the run is not complete: {run['error'] or 'records are missing'}"},
    }


def _candidate(
    name: str,
    settings: Record,
    stages: dict[str, Record | None],
    right: dict[str, Any],
    store: Store,
    machine: Record,
) -> Summary:
    evaluation, mine, baseline = stages.get(f"evaluate/{name}"), right[name], right.get("fp32")
    found: Summary = {
        "name": name,
        "kind": kind_of(name),
        "config": settings["train" if name == "fp32" else kind_of(name)],
        "top1": None,
        "top1_interval": None,
        "drop_points": None,
        "drop_interval": None,
        "same_accuracy_p": None,
        "test_images": None,
    }
    if evaluation is not None and mine is not None:
        results = evaluation["results"]
        found.update(
            top1=results["top1"],
            test_images=results["test_images"],
            top1_interval=list(proportion_interval(results["correct"], results["test_images"])),
        )
        if baseline is not None:
            drop, interval = (0.0, (0.0, 0.0)) if name == "fp32" else paired_drop(baseline, mine)
            found.update(
                drop_points=drop, drop_interval=list(interval), same_accuracy_p=same_accuracy_p(baseline, mine)
            )
    found["artifacts"] = [
        {
            key: record["results"].get(key)
            for key in ("runtime", "target", "size_bytes", "weight_bytes", "int8_mac_share", "sha256", "note", "ledger")
        }
        | {"resident_bytes": evaluation["results"].get("resident_bytes") if evaluation is not None else None}
        | _executed(record, evaluation)
        | {"path": store.place(record, _file_of(record))}
        for stage, record in stages.items()
        if record is not None and (stage == f"lower/{name}" or stage.startswith(f"lower/{name}/"))
    ]
    backend = found["config"].get("backend")
    if stages.get(name) is not None and "calibration" in (stages[name] or {})["results"]:
        found["config"] = {**found["config"], "calibration": (stages[name] or {})["results"]["calibration"]}
    found["float_layers"] = (
        (stages[name] or {})["results"].get("float_layers") if stages.get(name) is not None else None
    )
    if stages.get(name) is not None and "config" in (stages[name] or {})["results"]:
        found["config"] = (stages[name] or {})["results"]["config"]  # as a sweep has chosen it
    found["backend"] = backend
    found["not_lowered"] = (
        why_not_lowered(backend, machine, settings["bench"]["devices"]) if f"lower/{name}" not in stages else None
    )
    found["graph_int8_mac_share"] = evaluation["results"].get("graph_int8_mac_share") if evaluation else None
    program = stages.get(name)
    found["reduce_range"] = (
        {**(program.get("settings") or {}), **program["results"]}.get("reduce_range") if program else None
    )
    found["parity"] = [
        row
        for stage, record in stages.items()
        if record is not None and stage in (name, f"lower/{name}", f"evaluate/{name}")
        for row in record["results"].get("parity", [])
    ]
    found["latency"] = [
        {key: value for key, value in row.items() if key != "candidate"}
        for stage, record in stages.items()
        if record is not None and stage.startswith("bench/")
        for row in record["results"]["rows"]
        if row["candidate"] == name
    ]
    return found


def _executed(lowered: Record, evaluation: Record | None) -> Record:
    """What was seen running of an artifact: the share of int8, and by batch size weights packed anew at a call."""
    same = evaluation is not None and (evaluation.get("settings") or {}).get("device") == lowered["results"]["target"]
    found = evaluation["results"] if same and evaluation is not None else {}
    return {
        "executed_int8_mac_share": found.get("executed_int8_mac_share"),
        "reorders_per_call": found.get("reorders_per_call"),
    }


def _file_of(lowered: Record) -> str:
    """The artifact's file in the folder of this lower stage."""
    return FILE_OF_RUNTIME[lowered["results"].get("runtime", "inductor")]


def _sweep(record: Record | None) -> Record | None:
    """What the trials of a sweep came to; None without one."""
    return None if record is None else dict(record["results"])


def _noise(noise: Record) -> Record:
    """What is known of the disturbances, without the clocks of every round."""
    return {key: value for key, value in noise.items() if key != "clocks"}


def predictions_of(run_folder: Path) -> dict[str, Any]:
    """By candidate, int32 [2, N]: the predicted classes of the test images, and their labels; None if not evaluated."""
    run, store = read_run(run_folder), store_of(run_folder)
    return {
        name.removeprefix("evaluate/"): _predictions(store, store.read(stage["kind"], stage["fingerprint"]))
        for name, stage in run["stages"].items()
        if name.startswith("evaluate/")
    }


def _predictions(store: Store, record: Record | None) -> Any:
    if record is None:
        return None
    path = store.file(record, PREDICTIONS)
    try:
        if path.stat().st_size > MAX_PREDICTIONS_BYTES:
            raise ValueError("larger than any test split")
        predictions = np.load(path, allow_pickle=False, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not readable predictions: {error}", "delete its folder and run again") from None
    results = record["results"]
    if predictions.shape != (2, results["test_images"]):
        raise UserError(f"{path}: predictions of shape {list(predictions.shape)}", "delete its folder and run again")
    right = int((predictions[0] == predictions[1]).sum())
    if right != results["correct"] or not math.isclose(results["top1"], right / results["test_images"]):
        raise UserError(
            f"{path}: {right} of {results['test_images']} predictions are right, and the record beside it says "
            f"{results['correct']} and top-1 {results['top1']}",
            "delete its folder and run again",
        )
    return predictions


def deployment_latency(candidate: Summary) -> Summary | None:
    """The row that decides: the artifact, on the first device, at the largest batch."""
    rows = [row for row in candidate["latency"] if row["runtime"] != "eager"]
    return max(
        (row for row in rows if row["device"] == rows[0]["device"]), key=lambda row: row["batch_size"], default=None
    )


def _selection(settings: Record) -> tuple[float, str]:
    """How much a candidate may lose, and what then decides: `sweep.select` where layers were searched."""
    sweep = settings.get("sweep") or {}
    if sweep.get("layers"):
        return sweep["select"]["max_drop"], sweep["select"]["then"]
    return settings["require"]["max_drop"], "latency"


def _verdict(candidates: list[Summary], max_drop: float, then: str = "latency") -> Summary:
    """The fastest (then: size: the smallest) candidate that loses at most `max_drop` points; why, in one sentence."""
    eligible = [
        c for c in candidates if c["drop_points"] is not None and c["drop_points"] <= max_drop and deployment_latency(c)
    ]
    if not eligible or any(not c["artifacts"] for c in (candidates[0], *eligible)):
        return {
            "choice": None,
            "why": "Cannot tell which to ship: no candidate has been lowered, evaluated and measured.",
        }
    fastest = (
        min(eligible, key=lambda c: c["artifacts"][0]["weight_bytes"])
        if then == "size"
        else max(eligible, key=lambda c: (deployment_latency(c) or {})["speedup"])
    )
    row = deployment_latency(fastest)
    assert row is not None
    unsure = [c["name"] for c in eligible if (deployment_latency(c) or {})["speedup_interval"] is None]
    if unsure and len(eligible) > 1 and then == "latency":
        return {
            "choice": None,
            "why": f"Cannot tell which to ship: the speed of {', '.join(unsure)} has no interval, as {row['rounds']} "
            "rounds are too few for one; raise bench.rounds or bench.budget_s, and measure interleaved.",
        }
    rivals = [
        c
        for c in eligible
        if c is not fastest
        and (
            c["artifacts"][0]["weight_bytes"] == fastest["artifacts"][0]["weight_bytes"]
            if then == "size"
            else _as_fast(deployment_latency(c) or {}, row)
        )
    ]
    doubt = ""
    if row.get("calm") is False:
        doubt += f" (the machine was not calm: {row['disturbed_rounds']} of {row['rounds']} rounds were disturbed)"
    chosen = max([fastest, *rivals], key=lambda c: c["top1"])
    row = deployment_latency(chosen)
    assert row is not None
    smaller = 1 - chosen["artifacts"][0]["weight_bytes"] / candidates[0]["artifacts"][0]["weight_bytes"]
    size = f"{100 * smaller:.0f}% smaller in weights, " if chosen["kind"] != "fp32" else ""
    unknown = [c["name"] for c in candidates if c.get("not_lowered")]
    refused = [c["name"] for c in candidates if c["drop_points"] is not None and c["drop_points"] > max_drop]
    others = f"; {', '.join(refused)} lost more than {max_drop:g} points" if refused else ""
    others += f"; {', '.join(unknown)} not lowered here, so not measured" if unknown else ""
    equals = [c["name"] for c in [fastest, *rivals] if c is not chosen]
    compared = "as small as" if then == "size" else "no detectable difference in speed to"
    as_fast = f"; {compared} {', '.join(equals)}" if equals else ""
    why = (
        f"Ship {chosen['name']}: {size}{row['speedup']:.1f} times as fast as {row['baseline']} "
        f"at batch {row['batch_size']} on {row['device']}{doubt}, {_drop_in_words(chosen, max_drop)}{as_fast}{others}."
    )
    return {"choice": chosen["name"], "why": why}


def _drop_in_words(candidate: Summary, max_drop: float) -> str:
    if candidate["kind"] == "fp32":
        return "as no quantized candidate is better"
    low, high = candidate["drop_interval"]
    points = candidate["drop_points"]
    lost = f"{points:.2f} points of top-1 lost" if points >= 0 else f"{-points:.2f} points of top-1 gained"
    detectable = "" if candidate["same_accuracy_p"] < SIGNIFICANT else "no detectable difference, "
    proven = (
        "" if high <= max_drop else f"; {candidate['test_images']} test images cannot exclude a drop above {max_drop:g}"
    )
    return f"{lost} ({detectable}95% interval of the drop {low:.2f} to {high:.2f}{proven})"


def _as_fast(one: Summary, other: Summary) -> bool:
    """Whether two latencies cannot be told apart: the interval of their ratios within rounds is known and holds 1."""
    _, interval = paired_ratio(row_ratios(one, other))
    return interval is not None and interval[0] <= 1 <= interval[1]


def row_ratios(one: Summary, other: Summary) -> Ratios:
    """The time of one row over that of another of the same measurement, by round."""
    if "round_launch" not in one or "round_launch" not in other:  # older records: nothing tells launches apart
        return [[a / b for a, b in zip(one["round_p50_ms"], other["round_p50_ms"], strict=True)]]
    place = {number: n for n, number in enumerate(_numbers(other))}
    both = [(n, place[number]) for n, number in enumerate(_numbers(one)) if number in place]
    spoilt = [one["round_disturbed"][n] or other["round_disturbed"][m] for n, m in both]
    one_ms, other_ms = [one["round_p50_ms"][n] for n, _ in both], [other["round_p50_ms"][m] for _, m in both]
    return calm_ratios([one["round_launch"][n] for n, _ in both], one_ms, other_ms, spoilt)


def _numbers(row: Summary) -> Sequence[int]:
    """Which of the rounds a row had a turn in; all of them in older records."""
    return row.get("round_number") or range(len(row["round_p50_ms"]))
