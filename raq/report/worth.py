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
        left = "The training was not worth it, and where ptq may be shipped, qat is not."
        return f"qat is worse than ptq: {between}{cost}. {left}"
    if low > 0:
        return f"qat is better than ptq: {between}{cost}."
    return f"qat is not shown to be better than ptq: {between}{cost}."


def ptq_of(name: str) -> str | None:
    """The candidate of PTQ that differs from one of QAT in nothing else (ptq-openvino of qat-openvino), by name."""
    return PTQ + name.removeprefix(QAT) if name == QAT or name.startswith(f"{QAT}-") else None


def is_worse(worse: Callable[[str, str], Paired | None], name: str) -> bool:
    """Whether a candidate of QAT is shown to be worse than that of PTQ; `worse` as in `worth_in_words`."""
    other = ptq_of(name)
    paired = None if other is None else worse(other, name)
    return paired is not None and paired.interval()[0] > 0


def seconds_of(records: Mapping[str, Any], name: str) -> float | None:
    """How long a candidate's making took, with the sweep before it; None where a record is missing.

    Of a training that went on after an end, its epochs count, and not the last attempt alone.
    """
    found = [record for stage, record in records.items() if stage in (name, f"sweep/{name}")]
    if not found or any(record is None or "duration_s" not in record for record in found):
        return None
    return float(sum(max(record["duration_s"], _epochs_s(record)) for record in found))


def _epochs_s(record: Mapping[str, Any]) -> float:
    rows = record.get("results", {}).get("history") or ()
    return float(sum(row.get("duration_s") or 0.0 for row in rows))
