"""What QAT is worth against PTQ, and which answers changed: sentences against counts made by hand."""

import numpy as np
import pytest

from raq.experiment.metric import Metric
from raq.report.changed_answers import changed_answers, changed_in_words, class_names
from raq.report.worth import Cost, cost_of, worth_in_words
from raq.statistics.paired import Paired, paired_answers
from raq.sweep.answers import Answers


def answers(*predicted: int) -> Answers:
    truth = np.arange(len(predicted)) % 3
    return Answers(Metric(), np.stack([np.array(predicted), truth]), False, len(predicted))


@pytest.mark.parametrize(
    ("qat", "ptq", "said"),
    [(900, 700, "is better than ptq: 20.00 points"), (700, 900, "is worse than ptq: -20.00 points"),
     (900, 899, "is not shown to be better than ptq: 0.10 points")],
)  # fmt: skip
def test_worth_goes_by_the_interval(qat: int, ptq: int, said: str) -> None:
    right = {name: np.arange(1000) < count for name, count in (("qat", qat), ("ptq", ptq))}

    def worse(first: str, second: str) -> Paired | None:
        return paired_answers(right[first], right[second])

    found = worth_in_words(worse, {"qat": Cost(1200.0, 8), "ptq": Cost(12.0, 1)}, Metric())
    assert found is not None
    assert said in found
    assert "made in 20 min on 8 CPUs, ptq in 12 s on 1 CPU." in found
    assert ("not worth it" in found) == (qat < ptq)
    assert worth_in_words(worse, {"qat": None, "ptq": Cost(12.0, 1)}, Metric()).count("made in") == 0  # type: ignore[union-attr]
    assert worth_in_words(lambda first, second: None, {}, Metric()) is None


def test_seconds_are_those_of_making_it_and_of_its_sweep() -> None:
    resumed = {"duration_s": 5.0, "results": {"history": [{"duration_s": 30.0}, {"duration_s": 31.0}]}}
    assert cost_of({"qat": resumed}, "qat") == (61.0, None), "the epochs before it was ended count"
    trained = {**resumed, "cpus": 2, "workers": 4, "settings": {"device": "cpu", "qat": {"workers": 4}}}
    assert cost_of({"qat": trained}, "qat") == (61.0, 8), "all workers' CPUs"
    for otherwise in ({"device": "cuda", "qat": {"workers": 4}}, {"device": "cpu", "qat": {"workers": [1, 4]}}):
        assert cost_of({"qat": {**trained, "settings": otherwise}}, "qat") == (61.0, None)
    records = {"qat": {"duration_s": 5.0}, "sweep/qat": {"duration_s": 20.0}, "evaluate/qat": {"duration_s": 7.0}}
    assert cost_of(records, "qat") == (25.0, None)
    assert cost_of({**records, "qat": resumed}, "qat") == (25.0, None), (
        "the sweep's time holds that of the chosen trial"
    )
    assert cost_of({**records, "sweep/qat": None}, "qat") is None
    assert cost_of(records, "ptq") is None


def test_changed_answers_are_counted_by_class() -> None:
    base, mine = answers(0, 1, 2, 0, 1, 0), answers(0, 1, 1, 0, 2, 2)  # truth: 0 1 2 0 1 2
    found = changed_answers(base, mine)
    assert found is not None
    assert (found["count"], found["lost"], found["won"], found["samples"]) == (3, 2, 1, 6)
    assert found["places"] == [2, 4, 5]
    assert found["classes"][0] == {"label": 1, "samples": 2, "right": [1.0, 0.5], "lost": 1, "won": 0}
    said = changed_in_words(found, class_names(["cat", "dog", "owl"]))
    assert "3 of 6 answers are others than FP32's: 2 right ones lost, 1 won" in said
    assert "dog 100.0 to 50.0% right" in said
    assert "owl" not in said, "it lost one and won one"
    assert "test samples 2, 4, 5" in said
    assert class_names(None)(3) == "3"
    assert changed_answers(base, answers(0, 1)) is None, "other samples"
