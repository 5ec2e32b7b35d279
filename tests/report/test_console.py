"""The lines of a run off a terminal: few, and all that people must know among them."""

import io

from raq.experiment.execution import Resources
from raq.plan.stages import Stage
from raq.report.live import RunDisplay


def test_notices_are_lines_at_once_and_progress_is_not() -> None:
    output, display = io.StringIO(), RunDisplay()
    stage = Stage("train", "train", "train", {}, {}, "f", Resources())
    display.begin([stage], {"train": "it is new"}, output)
    display.stage("train", {"state": "starting"})
    display.stage("train", {"state": "running"})
    display.stage("train", {"state": "running", "text": "reading"})
    display.stage("train", {"state": "running", "text": "its workers were started again", "notice": True})
    display.note("s3://bucket does not answer, trying again")
    display.stage("train", {"state": "retry", "text": "its process died, attempt 2"})
    display.end()
    assert output.getvalue().splitlines() == [
        "plan: 1 of 1 stages to do: train",
        "train: starting",
        "train: running",
        "train: running: its workers were started again",
        "raq: s3://bucket does not answer, trying again",
        "train: retry: its process died, attempt 2",
    ]
