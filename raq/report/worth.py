"""QAT against PTQ: whether it is worse, and whether it was worth what it took. Neither torch nor ray."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raq.experiment.metric import Metric, amount, difference
from raq.report.claims import Claim, Drops, drop_claim
from raq.report.live import seconds
from raq.report.options import Option
from raq.statistics.paired import Paired
from raq.statistics.proportions import together

PTQ, QAT = "ptq", "qat"


def worth_in_words(
    worse: Callable[[str, str], Paired | None], took_s: Mapping[str, float | None], metric: Metric
) -> str | None:
    """One sentence on QAT's gain over PTQ beside its cost; None unless both were evaluated on the same samples.

    worse: of (first, second), how much worse the second is; took_s: seconds that making each took, by candidate.
    """
    paired = worse(QAT, PTQ)  # how much worse PTQ is: QAT's gain
    if paired is None:
        return None
    gain, (low, high) = paired.value, paired.interval()
    between = f"{amount(metric, gain, '.2f')} ({difference(metric, low)} to {difference(metric, high)})"
    known = [took_s.get(QAT), took_s.get(PTQ)]
    cost = "" if None in known else f"; it was made in {seconds(known[0] or 0.0)}, ptq in {seconds(known[1] or 0.0)}"
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


def seconds_of(records: Mapping[str, Any], name: str) -> float | None:
    """How long a candidate's making took, with the sweep before it; None where a record is missing.

    Of a training that went on after an end, its epochs count, and not the last attempt alone.
    """
    found = [record for stage, record in records.items() if stage in (name, f"sweep/{name}")]
    if not found or any(record is None or "duration_s" not in record for record in found):
        return None
    if len(found) > 1:  # the sweep's time holds that of the chosen trial's epochs
        return float(sum(record["duration_s"] for record in found))
    epochs = found[0].get("results", {}).get("history", [])
    return float(max(found[0]["duration_s"], sum(row.get("duration_s", 0.0) for row in epochs)))
