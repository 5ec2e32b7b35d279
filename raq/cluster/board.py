"""The board: where stages post how far they are, and where the driver waits for it.

Imports nothing of raq: the board's process needs neither torch nor the stages, and so is there in a moment.
"""

import asyncio
from collections.abc import Callable
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


def progress_to(board: Any, stage: str) -> Callable[[dict[str, Any]], None]:
    """A progress function that posts to the board and does not wait."""
    return lambda metrics: board.post.remote({"stage": stage, "progress": metrics})
