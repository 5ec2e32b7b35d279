"""The one judgement of whether something is int8, for the gate of a run and for `raq check`. Must not import torch."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raq.store.views import View


class AuditedLayer(View):
    """Of `audit.LayerAudit`, what the judgement needs."""

    name: str
    macs: int
    int8: bool
    reason: str = ""


class OtherOperation(View):
    """What multiplies and is no layer. macs: None if unknown."""

    name: str
    operator: str
    macs: int | None


class AuditOfRecord(View):
    """Of `audit.Audit`, what the judgement needs."""

    layers: list[AuditedLayer]
    others: tuple[OtherOperation, ...] = ()
    int8_mac_share: float | None
    total_macs: int | None = None
    problem: str = ""


class Constant(View):
    """Of `sizes.Entry`, what the judgement needs."""

    shape: list[int]


class LedgerOfRecord(View):
    """Of `sizes.Ledger`, what the judgement needs."""

    constants: list[Constant]


def weight_sizes(shapes: Iterable[Sequence[int]]) -> set[int]:
    """Numbers of elements of an artifact's weights, from the shapes of its constants: more than one dimension."""
    return {math.prod(shape) for shape in shapes if len(shape) > 1}


class Lowered(View):
    """What a lower stage found that shows whether its artifact is int8."""

    audit: AuditOfRecord | None = None
    float_by_choice: tuple[str, ...] = ()
    float_weight_share: float | None = None
    int8_weight_mac_share: float | None = None
    macs: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known of an artifact that is to be int8. Shares are of the multiply-accumulates, from 0 to 1.

    read: done by integer kernels, as the generated code has it, None if unknown; executed: as oneDNN reported it when
    it ran, None if that is not known (not run, or its runtime reports none); by_choice: of layers that the user or
    a search left in float; float_weights: of the weights' numbers, those that are stored as floats, layers
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
    return [*found, *why_not_smaller(evidence.float_weights, max_float_weights)]


def why_not_int8_weights(
    share: float | None, required_share: float, float_weights: float | None, max_float_weights: float
) -> list[str]:
    """What is missing, in words, of what has int8 weights alone; nothing if it reads them and is smaller.

    share: of the multiply-accumulates, by kernels that read int8 weights; unknown does not pass.
    """
    found = []
    if share is None or share < required_share:
        known = "an unknown share" if share is None else f"{share:.3f}"
        found.append(f"{known} of its MACs reads int8 weights, required is {required_share:.4g}")
    return [*found, *why_not_smaller(float_weights, max_float_weights)]


def why_not_smaller(float_weights: float | None, max_float_weights: float) -> list[str]:
    """What is missing, in words, where more of the weights than may be are floats; an unknown share is none."""
    if float_weights is None or float_weights <= max_float_weights:
        return []
    return [
        f"{float_weights:.3f} of its weights are floats, at most {max_float_weights:g} may be: it is hardly smaller"
    ]


def evidence_of(lowered: Lowered) -> Evidence:
    """The evidence of a lower stage; what was executed comes with the evaluation."""
    audit = lowered.audit
    assert audit is not None
    total = audit.total_macs or sum(layer.macs for layer in audit.layers)
    chosen = set(lowered.float_by_choice)
    by_choice = sum(layer.macs for layer in audit.layers if layer.name in chosen and not layer.int8)
    return Evidence(audit.int8_mac_share, None, by_choice / total if total else 0.0, lowered.float_weight_share)
