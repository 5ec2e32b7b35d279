"""Whether quantization-aware training was worth what it took, against PTQ. Neither torch nor ray."""

from collections.abc import Callable, Mapping
from typing import Any

from raq.experiment.metric import Metric, amount, difference
from raq.report.live import seconds
from raq.statistics.paired import Paired

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


def seconds_of(records: Mapping[str, Any], name: str) -> float | None:
    """How long a candidate's making took, with the sweep before it; None where a record is missing."""
    found = [record for stage, record in records.items() if stage in (name, f"sweep/{name}")]
    if not found or any(record is None or "duration_s" not in record for record in found):
        return None
    return float(sum(record["duration_s"] for record in found))
