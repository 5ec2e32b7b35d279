"""The board: where stages post how far they are, and where the driver waits for it.

Imports nothing of raq: the board's process needs neither torch nor the stages, and so is there in a moment.
"""

import asyncio
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Event = dict[str, Any]


@ray.remote(num_cpus=0)
class Board:
    """Where actors post events and from where the driver takes them, waiting instead of polling."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.arrived = asyncio.Event()

    async def post(self, event: Event) -> None:
        """Leave an event."""
        self.events.append(event)
        self.arrived.set()

    async def take(self, timeout_s: float) -> list[Event]:
        """All events since the last time, as soon as there is one; none after `timeout_s`."""
        try:
            await asyncio.wait_for(self.arrived.wait(), timeout_s)
        except TimeoutError:
            return []
        events, self.events = self.events, []
        self.arrived.clear()
        return events


def start_board() -> Any:
    """A new board, on the node of this process: no other node's end takes it away."""
    actor: Any = Board  # ray.remote made it an actor class
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=here).remote()


@dataclass(frozen=True)
class Post:
    """Posts what one attempt at a stage tells, and does not wait: a progress function that other processes can have."""

    board: Any
    stage: str
    attempt: int = 1

    def __call__(self, progress: Event) -> None:
        """How far it is."""
        self._post(progress=progress)

    def notice(self, text: str) -> None:
        """Something that is worth a line wherever people look."""
        self._post(progress={"text": text, "notice": True})

    def at_work(self, node: str) -> None:
        """It has begun, on the node with this id."""
        self._post(node=node)

    def _post(self, **what: Any) -> None:
        self.board.post.remote({"stage": self.stage, "attempt": self.attempt, **what})
