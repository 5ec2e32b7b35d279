"""What PTQ did beside calibration, and how `ptq.effort` went, in words. Neither torch nor ray."""

from collections.abc import Iterator

from raq.experiment.metric import POINTS
from raq.report.types import CandidateSummary
from raq.store.ptq_results import Climbed, ClimbedStep, PtqMethods

STARTS = {
    "ptq": "the graph that ptq ended with, its scales learning too",
    "calibration": "a graph calibrated for it, as no ptq of its backend is there, its scales learning too",
    "fp32": "FP32's weights, ranges observed meanwhile",
}


def how_made(candidate: CandidateSummary) -> Iterator[str]:
    """Sentences on how a candidate was made; none where it was calibration alone, or another runtime has said it."""
    if candidate.get("program") not in (None, candidate["name"]):
        return
    methods, climbed, metric = candidate.get("methods"), candidate.get("effort"), candidate.get("metric")
    if climbed is not None:
        yield f"{candidate['name']}, {climbed_in_words(climbed, metric['unit'] if metric is not None else POINTS)}"
    start = candidate.get("start")
    if start in STARTS:
        yield f"{candidate['name']}: trained from {STARTS[start]}"
    if methods is not None and (said := methods_in_words(methods)):
        yield f"{candidate['name']}: {said}"


def methods_in_words(found: PtqMethods) -> str | None:
    """What was done, in one sentence; None where it was calibration alone."""
    said = [] if not (observer := found.get("observer")) else [f"ranges by the observer {observer}"]
    free = [one for one in found["equalized"] if one["into"] is not None]
    paid = [one for one in found["equalized"] if one["into"] is None]
    if free:
        said.append(f"channels equalized before {len(free)} layers at no cost")
    if paid:
        said.append(f"channels equalized by multiplications before {len(paid)} layers")
    if found["corrected"]:
        said.append(f"biases of {len(found['corrected'])} layers corrected")
    learned = found["learned"]
    if learned is not None:
        of = f" of {learned['samples']} samples" if "samples" in learned else ""
        said.append(
            f"rounding learned in {learned['steps']} steps{of} (error of the outputs {learned['error_before']:.2g} to "
            f"{learned['error_after']:.2g} of their variance, {100 * learned['moved_share']:.2g}% of weights otherwise)"
        )
    return ", ".join(said) or None


def climbed_in_words(climbed: Climbed, unit: str) -> str:
    """Each step of the ladder: what it came to, what it took, whether it was kept."""
    steps = "; ".join(_step_in_words(row, unit) for row in climbed["rows"])
    compared = climbed.get("compared", "outputs")
    twice = f" ({count} of them calibrated too)" if (count := climbed.get("calibrating")) else ""
    return f"effort {climbed['effort']}, {compared} of {climbed['samples']} {climbed['split']} samples{twice}: {steps}"


def _step_in_words(row: ClimbedStep, unit: str) -> str:
    if "error" in row:
        return f"{row['step']} could not be done ({row['error']})"
    distance = "equal outputs" if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f} dB"
    drop, interval = row["drop"], row["drop_interval"]
    lost = "" if drop is None or interval is None else (
        f", drop {drop:.2f} {unit} ({interval[0]:.2f} to {interval[1]:.2f})"
    )  # fmt: skip
    kept = "" if row["kept"] else ", not kept"
    return f"{row['step']} {distance}{lost}, {row['seconds']:.0f} s{kept}"
