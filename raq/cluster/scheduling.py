"""Which stages may start now, and on which node slots. Knows no Ray: what runs and what is free are given to it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from raq.cluster.nodes import Node
from raq.cluster.resources import Demand, ResourcePool, demand_of
from raq.plan.stages import Stage


@dataclass(frozen=True)
class Start:
    """A stage that may start, and the node of each of its workers."""

    stage: Stage
    node_slots: list[int]


class Scheduler:
    """The order of a plan's stages on a cluster's nodes, with what is free on them."""

    def __init__(self, plan: Collection[Stage], nodes: list[Node]) -> None:
        """UserError if no node, or not all of them together, can give what a stage of the plan takes."""
        self.waiting = {stage.name: stage for stage in plan}
        self.demands = {stage.name: demand_of(stage, nodes) for stage in plan}
        self.pool = ResourcePool(nodes)

    def is_coordinator(self, stage: Stage) -> bool:
        """Whether the stage's actor only waits for its workers, which have the resources."""
        return self.demands[stage.name].is_coordinator

    def take_startable(self, running: Mapping[str, Stage], postponed: Collection[str]) -> list[Start]:
        """The stages whose inputs are there and that fit now, no longer waiting; a measurement runs alone.

        running: by name; postponed: the names of distributed stages that wait for others to end before another attempt:
        meanwhile no distributed stage starts, for which they would wait on.
        """
        chosen: list[Start] = []
        unfinished = {*self.waiting, *running, *postponed}
        if any(stage.pool == "bench" for stage in running.values()):
            return chosen
        full: set[tuple[str, Demand]] = set()  # what there is no room for now: the same for all stages of a kind
        for stage in self.waiting.values():
            runs_alone = stage.pool == "bench"
            demand = self.demands[stage.name]
            blocked = (runs_alone and (running or chosen)) or (postponed and demand.is_coordinator)
            if blocked or (stage.pool, demand) in full or unfinished & set(stage.inputs.values()):
                continue
            node_slots = self.pool.acquire(stage, demand)
            if node_slots is None:
                full.add((stage.pool, demand))
                continue
            chosen.append(Start(stage, node_slots))
            if runs_alone:
                break
        for start in chosen:
            del self.waiting[start.stage.name]
        return chosen

    def release(self, start: Start) -> None:
        """Free the node slots of a stage that has ended."""
        self.pool.release(start.node_slots, self.demands[start.stage.name])
