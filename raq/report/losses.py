"""Which layers lose most by quantization, and what their numbers say of why. Neither torch nor ray."""

from collections.abc import Sequence

from raq.store.ptq_results import LayerLoss

MAX_SAID = 3
SATURATED, FAR_REACH, SHIFTED = 0.001, 24.0, 0.25  # from where each is worth a word


def why(loss: LayerLoss) -> str:
    """What stands out in a layer's numbers, in words; empty if nothing does."""
    said = []
    saturated, reach, shift = loss["saturated_share"], loss["reach"], loss["shift_share"]
    if saturated is not None and saturated > SATURATED:
        said.append(f"{100 * saturated:.2g}% of its input lie beyond its range: a wider one (observer, percentile)")
    if reach is not None and reach > FAR_REACH:
        said.append(
            f"its range reaches {reach:.0f} standard deviations: outliers; ptq.equalization spreads those of single "
            "channels, percentile cuts them off"
        )
    if shift is not None and shift > SHIFTED:
        said.append(
            f"{100 * shift:.0f}% of its error is a shift of channels' means, which ptq.bias_correction takes away"
        )
    weight, own = loss["weight_sqnr_db"], loss["own_sqnr_db"]
    if weight is not None and own is not None and weight < own + 1:
        said.append("most of it comes from its weight: ptq.learned_rounding")
    return "; ".join(said)


def worst(losses: Sequence[LayerLoss]) -> list[LayerLoss]:
    """The layers that lose most by themselves, the worst first; those that lose nothing are left out."""
    known = [loss for loss in losses if loss["own_sqnr_db"] is not None]
    return sorted(known, key=lambda loss: loss["own_sqnr_db"] or 0.0)


def losses_in_words(losses: Sequence[LayerLoss]) -> str | None:
    """The few worst layers in one sentence; None if nothing is known."""
    found = worst(losses)[:MAX_SAID]
    if not found:
        return None
    parts = [
        f"{loss['name']} {loss['own_sqnr_db']:.1f} dB" + (f" ({said})" if (said := why(loss)) else "") for loss in found
    ]
    return f"layers that lose most by themselves: {', '.join(parts)}"
