"""Which layers lose most by quantization, what their numbers say of why, and what to try. Neither torch nor ray."""

from collections.abc import Sequence

from raq.store.ptq_results import Climbed, LayerLoss, PtqMethods

MAX_SAID = 3
SATURATED, FAR_REACH, SHIFTED, UNUSED = 0.001, 24.0, 0.25, 0.25  # from where each is worth a word


class Tried:
    """Which methods a candidate was made with, and which `ptq.effort` tried and left out, by their keys of `ptq`.

    Equalization that only folds counts as neither: that of everything is left to try. backend: that of the candidate;
    x86 alone has equalization.
    """

    def __init__(
        self, methods: PtqMethods | None = None, climbed: Climbed | None = None, backend: str | None = "x86"
    ) -> None:
        self.equalizes = backend in (None, "x86")
        self.done: set[str] = set()
        if methods is not None:
            found = {
                "equalization": methods["equalization"] == "all", "bias_correction": methods["bias_correction"],
                "learned_rounding": methods["learned_rounding"] > 0,
            }  # fmt: skip
            self.done = {key for key, is_done in found.items() if is_done}
        rows = climbed["rows"] if climbed is not None else []
        steps = [row["step"] for row in rows if not row["kept"] and "error" not in row]
        self.left_out = {step.partition(":")[0] for step in steps if step != "equalization: folded"}

    def advice(self, key: str, does: str) -> str:
        """What a method would do; or that it was done, or left out."""
        if key in self.done:
            return f" (ptq.{key} was done)"
        if key in self.left_out:
            return f" (ptq.effort tried ptq.{key} and left it out)"
        return f": ptq.{key} {does}"


def why(loss: LayerLoss, tried: Tried) -> str:
    """What stands out in a layer's numbers, in words; empty if nothing does."""
    said = []
    saturated, reach, shift = loss["saturated_share"], loss["reach"], loss["shift_share"]
    if saturated is not None and saturated > SATURATED:
        said.append(f"{100 * saturated:.2g}% of its input lie beyond its range: a wider one (observer, percentile)")
    used = loss.get("used_share")
    if reach is not None and reach > FAR_REACH and used is not None:  # of older records, it is the range's own
        advice = tried.advice("equalization", "(all) spreads those of single channels") if tried.equalizes else ""
        said.append(f"outliers {reach:.0f} standard deviations from the mean, which percentile cuts off{advice}")
    if used is not None and used < UNUSED:
        said.append(
            f"its input fills {100 * used:.2g}% of its range: calibration saw wider ones, or its values are small, or "
            "far from 0"
        )
    if shift is not None and shift > SHIFTED:
        advice = tried.advice("bias_correction", "takes that away")
        said.append(f"{100 * shift:.0f}% of its error is a shift of channels' means{advice}")
    weight, own = loss["weight_sqnr_db"], loss["own_sqnr_db"]
    if weight is not None and own is not None and weight < own + 1:
        said.append(f"most of it comes from its weight{tried.advice('learned_rounding', 'may round it better')}")
    return "; ".join(said)


def worst(losses: Sequence[LayerLoss]) -> list[LayerLoss]:
    """The layers that lose most by themselves, the worst first; those that lose nothing are left out."""
    known = [loss for loss in losses if loss["own_sqnr_db"] is not None]
    return sorted(known, key=lambda loss: loss["own_sqnr_db"] or 0.0)


def losses_in_words(losses: Sequence[LayerLoss], tried: Tried) -> str | None:
    """The few worst layers in one sentence; None if nothing is known."""
    found = worst(losses)[:MAX_SAID]
    if not found:
        return None
    parts = [
        f"{loss['name']} {loss['own_sqnr_db']:.1f} dB" + (f" ({said})" if (said := why(loss, tried)) else "")
        for loss in found
    ]
    return f"layers that lose most by themselves: {', '.join(parts)}"
