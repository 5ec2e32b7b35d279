"""The terminal, for what proves: the parity chain, `raq check` and `raq doctor`. Neither torch nor ray."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raq.doctor import Finding
from raq.report.terminal import clean, printable, say
from raq.store.evaluation_results import ParityRow

ALONE = {"inductor": "torch", "executorch": "ExecuTorch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime",
         "tensorrt": "TensorRT"}  # fmt: skip
MARKS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "bad": ("BAD", "bold red")}


def parity_in_words(rows: Sequence[ParityRow]) -> str:
    """The parity chain: each step's top-1, and how far its logits are from the step before it."""
    parts = []
    for row in rows:
        distance = "" if row["against"] is None else " (equal)" if row["equal"] else f" ({row['sqnr_db']:.0f} dB)"
        value = f"{row.get('value'):.4g}" if row["top1"] is None else f"{100 * row['top1']:.1f}%"
        parts.append(f"{row['step']} {value}{distance}")
    return f"{' > '.join(parts)}, on {rows[0]['images']} test images"


def print_check(console: Console, found: Mapping[str, Any]) -> None:
    """What `raq check` found of one artifact: layer by layer, byte by byte, and what is wrong."""
    found = clean(dict(found))
    share = found["int8_mac_share"]
    known = "unknown" if share is None else f"{100 * share:.1f}%"
    vouched = {None: "no record of it", True: "the file of its record", False: "NOT the file of its record"}
    console.print()
    say(console, f"{found['path']}: int8 {known} of the MACs, {vouched[found['vouched']]}", "bold")
    if found["layers"] or found["others"]:
        others = [{**other, "kernel": None, "int8": False, "reason": other["operator"]} for other in found["others"]]
        ran = {row["name"]: row["int8"] for row in found["executed_layers"]}
        console.print(_layers([*found["layers"], *others], ran))
    if found["executed_int8_mac_share"] is not None:
        say(console, f"seen running: {100 * found['executed_int8_mac_share']:.1f}% of the MACs in int8 kernels")
    if found["ledger"]:
        sizes = found["ledger"]
        types = ", ".join(f"{dtype} {_mb(count)}" for dtype, count in sizes["by_dtype"].items())
        say(
            console,
            f"file {_mb(sizes['file_bytes'])}: constants {_mb(sizes['stored_constant_bytes'])} as packed "
            f"({_mb(sizes['constant_bytes'])} of numbers: {types}), code {_mb(sizes['code_bytes'])}; "
            f"weights {_mb(sizes['weight_bytes'])}, scales and biases {_mb(sizes['scale_bytes'])}",
        )
    if found["ran"]:
        resident, alone = found["ran"]["resident_bytes"], ALONE.get(found["ran"]["runtime"], found["ran"]["runtime"])
        memory = "" if resident is None else f", {_mb(resident)} resident"
        say(
            console,
            f"ran in an isolated process with {alone} alone: loaded in {found['ran']['load_s']:.2f} s{memory}, "
            f"{found['ran']['classes']} classes",
        )
    for note in found["notes"]:
        say(console, note, "dim")
    for problem in found["problems"]:
        say(console, f"PROBLEM: {problem}", "bold red")
    if not found["problems"]:
        say(console, "nothing is wrong with it" if found["ran"] else "nothing is wrong with it; not run", "green")


def print_findings(console: Console, findings: Sequence[Finding]) -> None:
    """What `raq doctor` found."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in findings:
        mark, style = MARKS[finding.state]
        hint = f" - {finding.hint}" if finding.hint else ""
        table.add_row(Text(mark, style), Text(printable(finding.name)), Text(printable(finding.value + hint)))
    console.print(table)
    states = [finding.state for finding in findings]
    if "bad" in states:
        say(console, f"{states.count('bad')} to mend before a run", "bold red")
    else:
        notes = states.count("note")
        say(console, f"ready for a run{f'; {notes} to know about' if notes else ''}", "bold")


def _layers(layers: Sequence[Mapping[str, Any]], ran: Mapping[str, bool]) -> Table:
    """Each layer as read; `ran`, if it was run with oneDNN's report: whether an int8 kernel was seen for it."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("layer", "kernel"):
        table.add_column(name, overflow="fold")
    table.add_column("million MACs", justify="right", no_wrap=True)
    table.add_column("int8", no_wrap=True)
    if ran:
        table.add_column("ran so", no_wrap=True)
    table.add_column("why not", overflow="fold")
    for layer in layers:
        macs = "?" if layer["macs"] is None else f"{layer['macs'] / 1e6:.2f}"
        kernel = (layer["kernel"] or "none").removeprefix("aoti_torch_cpu_").removeprefix("_").removesuffix("_tensor")
        table.add_row(
            Text(printable(layer["name"])),
            Text(printable(kernel)),
            Text(macs),
            *([_yes_or_no(layer["int8"])] + ([_yes_or_no(ran.get(layer["name"], False))] if ran else [])),
            Text(printable(layer["reason"])),
        )
    return table


def _yes_or_no(value: bool) -> Text:
    return Text("yes", "green") if value else Text("no", "red")


def _mb(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count / 1e3:.2f} kB"
