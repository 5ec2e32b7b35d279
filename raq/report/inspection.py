"""The terminal, for `raq inspect`. Neither torch nor ray."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from raq.experiment.inputs import in_words, read_inputs
from raq.report.terminal import clean, say

SHOWN = 12  # layers that stay in float


def print_inspection(console: Console, found: Mapping[str, Any]) -> None:
    """What would become of a network."""
    found = clean(dict(found))
    inputs = read_inputs(found["inputs"])
    say(console, f"{found['model']}: {in_words(inputs) if inputs else 'unknown inputs'}", "bold")
    if found["parameters"] is not None:
        size = f"{found['fp32_bytes'] / 1e6:.2f} MB in FP32"
        macs = "an unknown number of" if found["macs"] is None else f"{found['macs'] / 1e6:.1f} million"
        say(console, f"{found['parameters'] / 1e6:.2f} million parameters, {size}; {macs} MACs a sample")
    if found["batch_norms"]:
        unusual = found["batch_norms_unusual"]
        more = f"; {len(unusual)} not as usual: {'; '.join(unusual[:3])}" if unusual else ""
        say(console, f"{found['batch_norms']} batch norms{more}")
    if found["unknown_operators"]:
        say(console, f"arithmetic that is not known: {', '.join(found['unknown_operators'])}", "yellow")
    if found["exports"]:
        say(console, "exports for any batch size", "green")
    elif found["exports"] is False:
        one = ", though it does for a batch of one" if found["static_batch"] else ""
        say(console, f"does not export for any batch size{one}", "bold red")
    if found["quantizes"]:
        share = found["int8_mac_share"]
        known = "an unknown share" if share is None else f"{100 * share:.1f}%"
        smaller = f"{found['int8_bytes'] / 1e6:.2f} MB of tensors"
        say(console, f"{known} of the MACs would be int8, in {found['int8_layers']} layers; {smaller}", "green")
        _print_floats(console, found)
    if found["qat"] is not None:
        why = f"QAT with start: fp32: {found['qat']}"
        said = "can be trained with fake quantizers" if found["qat"] == "ok" else why
        say(console, said, "green" if found["qat"] == "ok" else "yellow")
    compiled = found["compiled"]
    if compiled is not None:
        share = compiled["executed_int8_mac_share"]
        known = "an unknown share" if share is None else f"{100 * share:.1f}%"
        packed = ", ".join(f"{count} at batch {size}" for size, count in compiled["reorders_per_call"].items())
        say(
            console,
            f"compiled in {compiled['compile_s']:.0f} s to {compiled['size_bytes'] / 1e6:.2f} MB: {known} of the MACs "
            f"ran in int8 kernels; weights packed anew at a call: {packed or 'unknown'}",
            "green" if share and not any(compiled["reorders_per_call"].values()) else "yellow",
        )
    if found["reason"] is not None:
        say(console, f"PROBLEM: {found['reason']}", "bold red")
        say(console, str(found["hint"]))


def _print_floats(console: Console, found: Mapping[str, Any]) -> None:
    """What would stay in float, the costliest first."""
    floats = [
        *found["float_layers"],
        *({**other, "reason": f"{other['operator']}: no int8 kernel"} for other in found["others"]),
    ]
    floats.sort(key=lambda layer: -(layer["macs"] or 0))
    for layer in floats[:SHOWN]:
        macs = "?" if layer["macs"] is None else f"{layer['macs'] / 1e6:.2f} million MACs"
        say(console, f"  in float: {layer['name']} ({macs}): {layer['reason']}")
    if len(floats) > SHOWN:
        say(console, f"  and {len(floats) - SHOWN} more, smaller ones")
