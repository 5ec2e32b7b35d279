"""QAT against PTQ: whether it is worse, and whether it was worth what it took. Neither torch nor ray."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from raq.experiment.metric import Metric, amount, difference
from raq.report.claims import Claim, Drops, drop_claim
from raq.report.live import seconds
from raq.report.options import Option
from raq.statistics.paired import Paired
from raq.statistics.proportions import together

PTQ, QAT = "ptq", "qat"


class Cost(NamedTuple):
    """What making a candidate took. cpus: how many of them, all workers' together; None where that says little: on
    GPUs, with workers that came and went, and in a sweep, whose trials share them."""

    seconds: float
    cpus: int | None

    def in_words(self) -> str:
        """As people say it."""
        return seconds(self.seconds) + ("" if self.cpus is None else f" on {self.cpus} CPU{'s' * (self.cpus > 1)}")


def worth_in_words(
    worse: Callable[[str, str], Paired | None], costs: Mapping[str, Cost | None], metric: Metric
) -> str | None:
    """One sentence on QAT's gain over PTQ beside its cost; None unless both were evaluated on the same samples.

    worse: of (first, second), how much worse the second is; costs: by candidate.
    """
    paired = worse(QAT, PTQ)  # how much worse PTQ is: QAT's gain
    if paired is None:
        return None
    gain, (low, high) = paired.value, paired.interval()
    between = f"{amount(metric, gain, '.2f')} ({difference(metric, low)} to {difference(metric, high)})"
    own, other, cost = costs.get(QAT), costs.get(PTQ), ""
    if own is not None and other is not None:
        cost = f"; it was made in {own.in_words()}, ptq in {other.in_words()}"
    if high < 0:
        return f"qat is worse than ptq: {between}{cost}. The training was not worth it."
    if low > 0:
        return f"qat is better than ptq: {between}{cost}."
    return f"qat is not shown to be better than ptq: {between}{cost}."


def worse_than_ptq(
    options: Sequence[Option], drops: Drops, known: dict[tuple[str, str], Claim]
) -> dict[str, tuple[str, Claim]]:
    """QAT that is shown to be worse than PTQ of the same backend in the same runtime, by name: that one, and the claim.

    options: what may be shipped at a place. known: claims that were made, by (QAT, PTQ), which this adds to.
    """
    found = {}
    trained = [option for option in options if option.program == QAT]
    for option in trained:
        for other in options:
            alike = [(o.candidate.get("backend"), o.row["runtime"]) for o in (option, other)]
            if other.program != PTQ or alike[0] != alike[1]:
                continue
            pair = option.name, other.name
            if pair not in known:
                text = f"{option.name} is not worse than {other.name}"
                known[pair] = drop_claim(text, drops(other.name, option.name), 0.0, together(len(trained)))
            if known[pair].holds is False:
                found[option.name] = other.name, known[pair]
    return found


def cost_of(records: Mapping[str, Any], name: str) -> Cost | None:
    """What a candidate's making took, with the sweep before it; None where a record is missing.

    Of a training that went on after an end, its epochs count, and not the last attempt alone.
    """
    found = [record for stage, record in records.items() if stage in (name, f"sweep/{name}")]
    if not found or any(record is None or "duration_s" not in record for record in found):
        return None
    if len(found) > 1:  # the sweep's time holds that of the chosen trial's epochs
        return Cost(float(sum(record["duration_s"] for record in found)), None)
    settings = found[0].get("settings", {})
    elastic = not isinstance(settings.get(QAT, {}).get("workers", 1), int)
    is_known = "cpus" in found[0] and not elastic and settings.get("device", "cpu") == "cpu"
    cpus = found[0]["cpus"] * found[0].get("workers", 1) if is_known else None
    epochs = found[0].get("results", {}).get("history", [])
    return Cost(float(max(found[0]["duration_s"], sum(row.get("duration_s", 0.0) for row in epochs))), cpus)
