"""When a stage is tried again and when waiting ends, by a clock and nodes that are made up, without Ray."""

from dataclasses import dataclass

import pytest

from raq.cluster.attempts import (
    FULL_BYTES,
    LOST_TIMEOUT_S,
    MAX_ATTEMPTS,
    MAX_NODES_LOST,
    START_TIMEOUT_S,
    Attempt,
    TimeOuts,
    refuse_another_attempt,
)
from raq.cluster.nodes import Node
from raq.cluster.resources import Demand
from raq.cluster.scheduling import Start
from raq.errors import StageError
from raq.experiment.execution import Resources
from raq.plan.stages import Stage

NODE = Node(4, 0, True)
ONE, MANY = Demand(4, 0, 1), Demand(4, 0, 2, is_coordinator=True)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def attempt(clock: Clock, timeout_s: float | None = None, workers: int = 1, **others: object) -> Attempt:
    stage = Stage("train", "train", "train", {}, {}, "f", Resources(timeout_s=timeout_s), workers)
    return Attempt(Start(stage, [0]), None, 1, clock.now, clock.now, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "nodes_lost", "message"),
    [
        (MAX_ATTEMPTS - 1, 0, None),
        (MAX_ATTEMPTS, 0, f"its process died, at attempt {MAX_ATTEMPTS} .Killed."),
        (MAX_ATTEMPTS, 1, None),
        (MAX_ATTEMPTS + 7, 8, None),
        (MAX_NODES_LOST + 1, MAX_NODES_LOST + 1, "its process died"),
    ],
)
def test_lost_nodes_count_apart_from_other_failures(number: int, nodes_lost: int, message: str | None) -> None:
    tried = attempt(Clock(), nodes_lost=nodes_lost)
    tried.number = number
    if message is None:
        refuse_another_attempt(tried, "its process died", "Killed", FULL_BYTES, "results", "a.log")
        return
    with pytest.raises(StageError, match=message) as refused:
        refuse_another_attempt(tried, "its process died", "Killed", FULL_BYTES, "results", "a.log")
    assert refused.value.hint == "see a.log"


def test_a_full_disk_ends_the_run() -> None:
    with pytest.raises(StageError, match="no space is left in results"):
        refuse_another_attempt(attempt(Clock()), "its process died", "Killed", FULL_BYTES - 1, "results", "a.log")


def test_a_stage_that_takes_too_long_is_overdue() -> None:
    clock = Clock()
    time_outs, slow = TimeOuts(clock=clock), attempt(clock, timeout_s=60, started=clock.now)
    clock.now += 60
    assert time_outs.check(slow, ONE, [NODE], [NODE], [slow]) is None
    clock.now += 1
    assert time_outs.check(slow, ONE, [NODE], [NODE], [slow]) == "overdue"


def test_without_a_limit_a_stage_at_work_may_take_for_ever_even_if_its_node_is_gone() -> None:
    """That its node is gone its actor's death tells."""
    clock = Clock()
    time_outs, slow = TimeOuts(clock=clock), attempt(clock, started=clock.now)
    clock.now += 1e6
    assert time_outs.check(slow, ONE, [], [], [slow]) is None


def test_a_stage_without_nodes_is_given_up_after_a_while_or_after_the_wait() -> None:
    for wait_s, longest in ((0.0, LOST_TIMEOUT_S), (500.0, 500.0)):
        clock = Clock()
        time_outs, waits = TimeOuts(wait_s, clock), attempt(clock)
        busy = attempt(clock, started=clock.now)
        clock.now += longest
        assert time_outs.check(waits, ONE, [], [NODE], [waits, busy]) is None
        clock.now += 1
        with pytest.raises(StageError, match=f"none have come for {longest:.0f} s"):
            time_outs.check(waits, ONE, [], [NODE], [waits, busy])


def test_a_node_that_comes_back_begins_the_wait_anew() -> None:
    clock = Clock()
    time_outs, waits = TimeOuts(clock=clock), attempt(clock, started=clock.now, workers=2)
    for _ in range(5):
        clock.now += LOST_TIMEOUT_S - 1
        assert time_outs.check(waits, MANY, [NODE], [NODE], [waits]) is None, "one node of two"
        clock.now += 1
        assert time_outs.check(waits, MANY, [NODE, NODE], [NODE, NODE], [waits]) is None
    clock.now += LOST_TIMEOUT_S + 1
    with pytest.raises(StageError, match="nodes that it needs are gone"):
        time_outs.check(waits, MANY, [NODE], [NODE], [waits])


def test_what_does_not_start_though_nothing_is_at_work_is_given_up() -> None:
    clock = Clock()
    time_outs, waits = TimeOuts(clock=clock), attempt(clock)
    busy = attempt(clock, started=clock.now)
    clock.now += 10 * START_TIMEOUT_S
    assert time_outs.check(waits, ONE, [NODE], [NODE], [waits, busy]) is None, "it may wait for what is at work"
    time_outs.last_end = clock.now
    clock.now += START_TIMEOUT_S
    assert time_outs.check(waits, ONE, [NODE], [NODE], [waits]) is None
    clock.now += 1
    with pytest.raises(StageError, match=f"no node started it within {START_TIMEOUT_S:.0f} s"):
        time_outs.check(waits, ONE, [NODE], [NODE], [waits])
