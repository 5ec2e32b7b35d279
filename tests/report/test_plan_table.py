"""What `raq plan` prints: a line a stage off a terminal, a table on one, and how many there are to do."""

import io

import pytest
from rich.console import Console

from raq.experiment.execution import Resources
from raq.plan.prepare import DryRun
from raq.plan.stages import Stage
from raq.report.console import print_plan

PLAN = [Stage(name, "ptq", "quantize", {}, {}, f"{name:0<16}", Resources()) for name in ("train", "evaluate/mixed-1")]


@pytest.mark.parametrize(
    ("stale", "took_s", "last"),
    [
        ({}, {}, "nothing to do: every stage is there already"),
        ({"train": "has not run"}, {}, "1 of 2 stages to do"),
        ({"train": "has not run"}, {"train": 24.2}, "1 of 2 stages to do; they took 24 s last time"),
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_a_plan(stale: dict[str, str], took_s: dict[str, float], last: str, terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, width=80, force_terminal=terminal, color_system=None)
    print_plan(console, DryRun(PLAN, stale, dict.fromkeys(stale, "2 CPUs on this machine"), took_s))
    lines = [" ".join(line.split()) for line in text.getvalue().splitlines()]
    assert lines[-1] == last
    assert ("stage fingerprint state took why; where it would run" in lines[0]) is terminal
    assert "evaluate/mixed-1 evaluate/mix up to date" in lines, "no name is cut"
    if stale:
        assert f"train train0000000 stale{' 24 s' * bool(took_s)} has not run; 2 CPUs" in " ".join(lines)
