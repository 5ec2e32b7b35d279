"""Events of stages on their way to the driver: how far each is, what is worth a line.

Imports nothing of raq: the queue's process needs neither torch nor the stages, and so starts in a moment.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Progress = dict[str, Any]


@dataclass(frozen=True)
class Event:
    """How far an attempt at a stage is; node: the id of the one that it has begun on, of its first event."""

    stage: str
    attempt: int
    progress: Progress = field(default_factory=dict)
    node: str | None = None


@ray.remote(num_cpus=0)
class EventQueue:
    """A queue that stages put events into and that the driver drains, waiting instead of polling."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.arrived = asyncio.Event()

    async def put(self, event: Event) -> None:
        """Append an event."""
        self.events.append(event)
        self.arrived.set()

    async def drain(self, timeout_s: float) -> list[Event]:
        """Remove and return all events, as soon as there is one; an empty list after `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self.arrived.wait(), timeout_s)
        except TimeoutError:
            return []
        events, self.events = self.events, []
        self.arrived.clear()
        return events


def start_event_queue() -> Any:
    """Start a queue on the node of this process, so that the loss of another node does not end it."""
    actor: Any = EventQueue  # ray.remote made it an actor class
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=here).remote()


@dataclass(frozen=True)
class EventSender:
    """Sends the events of one attempt at a stage without waiting: a progress function that can be pickled."""

    queue: Any
    stage: str
    attempt: int = 1

    def __call__(self, progress: Progress) -> None:
        """Send how far the stage is."""
        self.queue.put.remote(Event(self.stage, self.attempt, progress))

    def notice(self, text: str) -> None:
        """Send a text that is worth a line, on a terminal and in a log."""
        self({"text": text, "notice": True})

    def at_work(self, node: str) -> None:
        """Say that the stage has begun, on the node with this id."""
        self.queue.put.remote(Event(self.stage, self.attempt, node=node))
