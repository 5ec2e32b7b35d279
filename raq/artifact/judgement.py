"""The one judgement of whether something is int8, for the gate of a run and for `raq check`. Must not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evidence:
    """What is known of an artifact that is to be int8. Shares are of the multiply-accumulates, from 0 to 1.

    read: done by integer kernels, as the generated code has it, None if unknown; executed: as oneDNN reported it when
    it ran, None if that is not known (it was not run, or by a runtime that does not tell); by_choice: of layers that
    the user or a search left in float; float_weights: of the weights' numbers, those that are stored as floats, layers
    left in float by choice not counted, None if unknown.
    """

    read: float | None
    executed: float | None
    by_choice: float
    float_weights: float | None


def why_not_int8(evidence: Evidence, required_share: float, max_float_weights: float) -> list[str]:
    """What is missing, in words; nothing if it is int8.

    required_share: of the multiply-accumulates that are not in float by choice. What is unknown does not pass.
    """
    required = required_share * (1 - evidence.by_choice)
    found = []
    if evidence.read is None or evidence.read < required:
        known = "an unknown share" if evidence.read is None else f"{evidence.read:.3f}"
        found.append(f"{known} of its MACs is int8, required is {required:.4g}")
    if evidence.executed is not None and evidence.executed < required:
        found.append(f"{evidence.executed:.3f} of its MACs ran in int8 kernels, required is {required:.4g}")
    if evidence.float_weights is not None and evidence.float_weights > max_float_weights:
        found.append(
            f"{evidence.float_weights:.3f} of its weights are floats, at most {max_float_weights:g} may be: "
            "it is hardly smaller"
        )
    return found


def evidence_of(results: Mapping[str, Any]) -> Evidence:
    """The evidence in the results of a lower stage; `executed` comes with the evaluation."""
    audit = results["audit"]
    total = audit.get("total_macs") or sum(layer["macs"] for layer in audit["layers"])
    chosen = set(results.get("float_by_choice", []))
    by_choice = sum(layer["macs"] for layer in audit["layers"] if layer["name"] in chosen and not layer["int8"])
    return Evidence(
        audit["int8_mac_share"],
        results.get("executed_int8_mac_share"),
        by_choice / total if total else 0.0,
        results.get("float_weight_share"),
    )
