"""Retry and time-out rules of stages: when to retry, when an attempt has timed out, when to stop waiting for nodes.

Times are seconds of `clock`; which nodes there are is given. Does not import Ray.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from raq.cluster.nodes import Node
from raq.cluster.resources import Demand, least_workers, slots_for
from raq.cluster.scheduling import Start
from raq.errors import StageError
from raq.plan.stages import Stage

START_TIMEOUT_S = 180.0
LOST_TIMEOUT_S = 45.0  # how long a stage may wait with no eligible node, without --wait
MAX_ATTEMPTS, MAX_NODES_LOST = 3, 10
FULL_BYTES = 20_000_000  # with less free, a record or a checkpoint may not fit
Clock = Callable[[], float]


@dataclass
class Attempt:
    """An attempt at a stage, by an actor. Attempts whose node was lost count apart from those that failed otherwise."""

    start: Start
    actor: Any
    number: int
    submitted: float
    last_able: float  # the last time that an eligible node existed
    nodes_lost: int = 0
    started: float | None = None  # when its process said that it is at work
    node: str | None = None

    @property
    def stage(self) -> Stage:
        """What is attempted."""
        return self.start.stage


def refuse_another_attempt(attempt: Attempt, what: str, reason: str, free_bytes: int, place: str, log: str) -> None:
    """Raise StageError if a stage may not be retried.

    what: what happened, in words; reason: the error; free_bytes: on the disk of the results, which are at `place`.
    """
    if free_bytes < FULL_BYTES:  # a full disk can kill a process, so that is said first
        raise StageError(
            f"{attempt.stage.name}: {what} ({reason}), and no space is left in {place}",
            "free some space there; finished stages are kept",
        )
    if attempt.number - attempt.nodes_lost >= MAX_ATTEMPTS or attempt.nodes_lost > MAX_NODES_LOST:
        raise StageError(f"{attempt.stage.name}: {what}, at attempt {attempt.number} ({reason})", f"see {log}")


@dataclass
class TimeOuts:
    """The time-outs of a run. wait_s: for replacement nodes (--wait)."""

    wait_s: float = 0.0
    clock: Clock = time.monotonic
    last_end: float = field(default=0.0)  # the last time that a stage ended: others may have waited for it

    def check(
        self, attempt: Attempt, demand: Demand, there: list[Node], alive: list[Node], others: Iterable[Attempt]
    ) -> Literal["overdue"] | None:
        """Whether an attempt is overdue: it has exceeded its stage's time limit. Notes when an eligible node was last
        seen.

        there: the nodes that live and stay; alive: with those that a notice says will be taken away; others: all
        running attempts. Raises StageError if the nodes it needs have been gone for too long, or if it has not started
        although no other stage of this run uses resources.
        """
        now, name = self.clock(), attempt.stage.name
        limit = attempt.stage.resources.timeout_s
        if attempt.started is not None and limit is not None and now - attempt.started > limit:
            return "overdue"
        if attempt.started is not None and not demand.is_coordinator:
            return None
        nodes = there if attempt.started is None else alive
        if slots_for(attempt.stage, nodes, demand) >= least_workers(attempt.stage):
            attempt.last_able = now
        patience = max(LOST_TIMEOUT_S, self.wait_s)
        if now - attempt.last_able > patience:
            raise StageError(
                f"{name}: nodes that it needs are gone, and none have come for {patience:.0f} s",
                "finished stages are kept; bring them back, or wait for them with --wait",
            )
        longest = max(START_TIMEOUT_S, self.wait_s)
        is_idle = all(other.started is None for other in others)
        if is_idle and attempt.started is None and now - max(attempt.submitted, self.last_end) > longest:
            raise StageError(
                f"{name}: no node started it within {longest:.0f} s",
                "the cluster is busy, or its nodes are not well; see 'ray status'",
            )
        return None
