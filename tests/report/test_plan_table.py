"""What `raq plan` prints: a line a stage off a terminal, a table on one, and how many there are to do."""

import io

import pytest
from rich.console import Console

from raq.experiment.schema import Resources
from raq.plan.stages import Stage
from raq.report.console import print_plan

PLAN = [Stage(name, "ptq", "quantize", {}, {}, f"{name:0<16}", Resources()) for name in ("train", "evaluate/mixed-1")]


@pytest.mark.parametrize(
    ("stale", "last"),
    [({}, "nothing to do: every stage is there already"), ({"train": "has not run"}, "1 of 2 stages to do")],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_plan(stale: dict[str, str], last: str, terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None)
    print_plan(console, PLAN, stale, dict.fromkeys(stale, "2 CPUs on this machine"))
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert lines[-1] == last
    assert ("stage fingerprint state why; where it would be done" in lines[0]) is terminal
    assert "evaluate/mixed-1 evaluate/mix fresh" in lines, "no name is cut"
    if stale:
        assert "train train0000000 stale has not run; 2 CPUs on this" in " ".join(lines)
