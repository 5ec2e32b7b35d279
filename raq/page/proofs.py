"""Sections that prove: layers, kernels, parity, bytes. Neither torch nor ray."""

from typing import Any, cast

from raq.artifact.runtimes import FP32_RUNTIME
from raq.page import plots
from raq.page.parts import Cell, Section, Table, number, shown
from raq.page.records import RunRecords
from raq.plan.facts import lowered_candidate
from raq.report.losses import Tried, why
from raq.report.methods import how_made
from raq.store.results import ArtifactProfile, Lowering


def layers(run: RunRecords) -> Section | None:
    """Which layer runs in which kernel, and why not in int8."""
    tables = []
    for name, record in run.stages.items():
        candidate = lowered_candidate(name)
        if candidate is None:
            continue
        lowered = cast("Lowering", record["results"])
        audit = lowered.get("audit")
        audited = audit["layers"] if audit is not None else []
        evaluated = run.stages.get(f"evaluate/{candidate}")
        seen = evaluated["results"].get("executed_layers") or [] if evaluated is not None else []
        ran: dict[str, str] = {layer["name"]: str(layer["kernel"] or "") for layer in seen}
        took = _ms_by_layer(run, candidate)
        rows = [
            [
                Cell(layer["name"]), Cell("yes", 1, "good") if layer["int8"] else Cell("no", 0, "bad"),
                Cell(ran.get(layer["name"], "")), number(layer["macs"] / 1e6, ".3f"),
                *(number(took.get(layer["name"], {}).get(size), ".4f") for size in sorted(_profiled(run, candidate))),
                Cell(layer.get("reason", "")),
            ]
            for layer in audited
        ]  # fmt: skip
        if rows:
            at = [f"ms at batch {size}" for size in sorted(_profiled(run, candidate))]
            columns = ["layer", "int8", "kernel seen running", "million MACs", *at, "why not"]
            tables.append(Table(f"{candidate}: {len(rows)} layers", columns, rows))
    how = (
        "int8: the compiled code calls an integer kernel for the layer, matched with the layers of the graph.",
        "The kernel is the one that reported itself while the artifact ran; ms are of the profile, where there is one.",
        "Of artifacts for a GPU, int8 is what the program gives to an int8 kernel; kernels seen are matched by number.",
    )
    return Section("layers", "Layer by layer", how, tables, is_open=False) if tables else None


def losses(run: RunRecords) -> Section | None:
    """What each layer loses by quantization."""
    parts: list[Any] = []
    made: list[str] = []
    for candidate in run.summary["candidates"]:
        found = candidate.get("losses", [])
        if not found or candidate.get("program") not in (None, candidate["name"]):
            continue
        tried = Tried(candidate.get("methods"), candidate.get("effort"), candidate.get("backend"))
        rows = [
            [
                number(at, "d"), Cell(loss["name"]), number(loss["own_sqnr_db"], ".1f"), number(loss["sqnr_db"], ".1f"),
                number(loss["weight_sqnr_db"], ".1f"),
                number(None if (share := loss["saturated_share"]) is None else 100 * share, ".3g"),
                number(loss["reach"] if "used_share" in loss else None, ".1f"),
                number(None if (share := loss["shift_share"]) is None else 100 * share, ".1f"), Cell(why(loss, tried)),
            ]
            for at, loss in enumerate(found, start=1)
        ]  # fmt: skip
        columns = [
            "order", "layer", "alone, dB", "with all before it, dB", "weight, dB", "input beyond its range, %",
            "farthest value, standard deviations", "shift of means, % of the error", "what stands out",
        ]  # fmt: skip
        made += how_made(candidate)
        parts += [
            plots.losses(candidate["name"], found),
            Table(f"{candidate['name']}: {len(found)} layers", columns, rows),
        ]
    how = (
        "Both networks computed the same few samples, which are not of the test split (in older records, they are).",
        "SQNR of each layer's output: lower is worse.",
        "Alone: only this layer's input and weight are rounded, from what FP32 gives it.",
        *made,
    )
    return Section("losses", "What each layer loses", how, parts, is_open=False) if parts else None


def _profiles(run: RunRecords) -> list[ArtifactProfile]:
    return [profile for measured in run.summary["measurement"] for profile in measured.get("profiles") or []]


def _profiled(run: RunRecords, candidate: str) -> set[int]:
    """The batch sizes of which a candidate has a profile."""
    return {profile["batch_size"] for profile in _profiles(run) if profile["candidate"] == candidate}


def _ms_by_layer(run: RunRecords, candidate: str) -> dict[str, dict[int, float]]:
    """By layer and batch size, the milliseconds of its kernels."""
    found: dict[str, dict[int, float]] = {}
    for profile in (profile for profile in _profiles(run) if profile["candidate"] == candidate):
        for layer in profile["layers"]:
            if layer["name"] is not None:
                own = found.setdefault(layer["name"], {})
                own[profile["batch_size"]] = own.get(profile["batch_size"], 0.0) + layer["ms"]
    return found


def kernels(run: RunRecords) -> Section | None:
    """Where the time of a call goes."""
    found = [plots.kernels(profile) for profile in _profiles(run)]
    rows = [
        [
            Cell(profile["candidate"]), number(profile["batch_size"], "d"), number(profile["total_ms"], ".3f"),
            number(sum(layer["ms"] for layer in profile["layers"]), ".3f"), number(profile["reorder_ms"], ".3f"),
            number(profile["other_kernels_ms"], ".3f"), number(profile["outside_onednn_ms"], ".3f"),
            number(profile["reorders_per_call"], "d"), number(profile["gops"], ".0f"),
            number(profile["peak_gops"], ".0f"),
        ]
        for profile in _profiles(run)
    ]  # fmt: skip
    columns = [
        "candidate", "batch", "ms a call", "in kernels that multiply", "in reorders", "in other kernels",
        "outside of oneDNN", "reorders a call", "GOPS", "peak of this CPU",
    ]  # fmt: skip
    how = (
        "Blue kernels are int8, grey ones float; the 40 longest are shown.",
        "The peak is measured by a loop that stays in registers: what this CPU could do at most.",
        "Kernels and calls are timed in processes of their own: on a disturbed machine their difference says little.",
    )
    parts: list[Any] = [Table("Where the time goes", columns, rows), *found]
    return Section("kernels", "Where the time goes", how, parts, is_open=False) if found else None


def parity(run: RunRecords) -> Section | None:
    """The chain from the FP32 network to the file."""
    rows = []
    for candidate in run.summary["candidates"]:
        for row in candidate["parity"]:
            distance = "equal" if row["equal"] else shown(row["sqnr_db"], ".1f")
            value = row["top1"] if row["top1"] is not None else row.get("value")
            rows.append(
                [
                    Cell(candidate["name"]), Cell(row["step"]), Cell(row["against"] or ""),
                    Cell(distance, 999.0 if row["equal"] else row["sqnr_db"]), number(row["changed"], "d"),
                    number(value, ".4f"), number(row["images"], "d"),
                ]
            )  # fmt: skip
    columns = ["candidate", "step", "against", "SQNR, dB", "classes changed", "metric", "samples"]
    how = (
        "Each step computes the same test samples as the step before it; one that loses more than its tolerance fails.",
        "The last step is the saved file in an isolated process, without raq.",
    )
    return (
        Section("parity", "The chain of proofs", how, [Table("Steps", columns, rows)], is_open=False) if rows else None
    )


def sizes(run: RunRecords) -> Section | None:
    """Where the bytes of each file are."""
    rows = []
    for candidate in run.summary["candidates"]:
        for artifact in candidate["artifacts"]:
            ledger = artifact.get("ledger") or {}
            rows.append(
                [
                    Cell(candidate["name"]), Cell(artifact.get("runtime") or FP32_RUNTIME),
                    *(
                        number(None if value is None else value / 1e6, ".3f")
                        for value in (
                            artifact["size_bytes"], artifact["weight_bytes"], ledger.get("constant_bytes"),
                            ledger.get("stored_constant_bytes"), ledger.get("scale_bytes"), ledger.get("code_bytes"),
                            artifact.get("resident_bytes"),
                        )
                    ),
                ]
            )  # fmt: skip
    columns = [
        "candidate", "runtime", "file, MB", "weights", "numbers", "numbers as packed", "scales and biases", "code",
        "resident when loaded",
    ]  # fmt: skip
    how = ("MB are millions of bytes. Packed: as the kernels want weights, with padding.",)
    return (
        Section("sizes", "Where the bytes are", how, [Table("Files", columns, rows)], is_open=False) if rows else None
    )
