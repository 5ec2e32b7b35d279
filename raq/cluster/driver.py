"""Runs the stale stages of a plan on the cluster, several at a time where they fit, and publishes their records."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raq.cluster.calls import Handover
from raq.cluster.nodes import (
    ENDING_TIMEOUT_S,
    NODE_ID,
    NOTICED_TIMEOUT_S,
    Node,
    NodeWatch,
    draining_nodes,
    node_is_gone,
)
from raq.cluster.resources import Demand, ResourcePool, demand_of, least_workers, slots_for
from raq.errors import StageError, UserError
from raq.experiment.schema import Experiment
from raq.plan.requirements import check_results
from raq.plan.stages import Stage
from raq.store.local import Store

START_TIMEOUT_S = 180.0
LOST_TIMEOUT_S = 45.0  # how long a stage may wait with no eligible node, without --wait
TAKE_TIMEOUT_S = 5.0
LAST_EVENTS_S = 0.2
MAX_ATTEMPTS, MAX_NODES_LOST = 3, 10
FULL_BYTES = 20_000_000  # with less free, a disk counts as full
Listener = Callable[[str, dict[str, Any]], None]  # (stage, what of it)


@dataclass
class _Running:
    stage: Stage
    actor: Any
    node_slots: list[int]
    attempt: int
    submitted: float
    nodes_lost: int = 0  # how many of the attempts before ended with their node: those count apart
    started: float | None = None  # when its process told that it is at work
    node: str | None = None  # where
    able: float = field(default_factory=time.monotonic)  # when there was a node that can do it, the last time


@dataclass
class Driver:
    """One run's stages on a cluster that is already there."""

    experiment: Experiment
    plan: list[Stage]
    store: Store
    run_folder: Path
    nodes: list[Node]
    listener: Listener
    working_directory: str
    wait_s: float = 0.0  # how long to wait for nodes in place of those that are lost
    running: dict[Any, _Running] = field(default_factory=dict)
    idle: list[tuple[Any, tuple[Any, ...]]] = field(default_factory=list)
    postponed: list[_Running] = field(default_factory=list)  # to be tried again when no other distributed stage runs
    handover: Handover = field(init=False)
    demands: dict[str, Demand] = field(init=False)  # of the stale stages
    queue: Any = field(init=False)
    pool: ResourcePool = field(init=False)
    last_end: float = 0.0  # when a stage ended, the last time
    watch: NodeWatch = field(init=False)

    def __post_init__(self) -> None:
        self.handover = Handover(
            self.experiment, self.plan, self.store, self.run_folder, self.working_directory, self.wait_s
        )
        self.pool = ResourcePool(self.nodes)
        self.watch = NodeWatch(self.nodes)

    def run(self, stale: Mapping[str, str]) -> None:
        """Do the stale stages; raises the first failure, with nothing left running."""
        import ray

        from raq.cluster.events import start_event_queue

        self.demands = {stage.name: demand_of(stage, self.nodes) for stage in self.plan if stage.name in stale}
        waiting = {stage.name: stage for stage in self.plan if stage.name in stale}
        self.queue = start_event_queue()
        events = self.queue.drain.remote(TAKE_TIMEOUT_S)
        try:
            while waiting or self.running or self.postponed:
                self._resume_postponed()
                for stage, node_slots in self._startable(waiting):
                    self._start(waiting.pop(stage.name), node_slots, attempt=1)
                finished, _ = ray.wait([*self.running, events], num_returns=1, timeout=2 * TAKE_TIMEOUT_S)
                if events not in finished:  # what a stage posted before it ended is shown before its end
                    ray.wait([events], timeout=LAST_EVENTS_S)
                everything = [
                    *self.running,
                    events,
                ]  # every finished one, so that a queued result is not taken for a time-out
                finished, _ = ray.wait(everything, num_returns=len(everything), timeout=0)
                if events in finished:
                    self._show(_drained(events))
                    events = self.queue.drain.remote(TAKE_TIMEOUT_S)
                for reference in [entry for entry in finished if entry in self.running]:
                    self._finish(reference)
                self._leave_nodes()
                self.store.check_lease()
                self._refuse_to_wait_for_ever()
        finally:
            for entry in self.running.values():
                ray.kill(entry.actor)
            self._end_idle()
            ray.kill(self.queue)

    def _startable(self, waiting: Mapping[str, Stage]) -> list[tuple[Stage, list[int]]]:
        """The stages whose inputs are there, with the node slots they now have; a measurement runs alone."""
        unfinished = {*waiting, *(entry.stage.name for entry in [*self.running.values(), *self.postponed])}
        chosen: list[tuple[Stage, list[int]]] = []
        if any(entry.stage.pool == "bench" for entry in self.running.values()):
            return chosen
        full: set[tuple[str, Demand]] = set()  # what there is no room for now: the same for all stages of a kind
        for stage in waiting.values():
            alone = stage.pool != "bench" or not (self.running or chosen)
            demand = self.demands[stage.name]
            kind = (stage.pool, demand)
            if self.postponed and demand.is_coordinator:  # else those would wait on
                continue
            if not alone or kind in full or unfinished & set(stage.inputs.values()):
                continue
            node_slots = self.pool.acquire(stage, demand)
            if node_slots is None:
                full.add(kind)
                continue
            chosen.append((stage, node_slots))
            if stage.pool == "bench":
                break
        return chosen

    def _start(self, stage: Stage, node_slots: list[int], attempt: int, nodes_lost: int = 0) -> None:
        from raq.cluster.actors import start_actor

        demand = self.demands[stage.name]
        key = (stage.pool, demand)
        actor = next((a for a, k in self.idle if k == key), None) if attempt == 1 else None
        if actor is None:  # a new one: what the idle ones hold it may need, and a node that was lost has theirs too
            self._end_idle()
            labels = {**stage.resources.labels, **(self._not_on_heads() if demand.is_coordinator else {})}
            actor = start_actor(self.queue, stage.pool, demand, labels)
        else:
            self.idle.remove((actor, key))
        log = self.handover.log_of(stage)
        reference = actor.run.remote(self.handover.call(stage, demand), str(log), attempt)
        self.running[reference] = _Running(stage, actor, node_slots, attempt, time.monotonic(), nodes_lost)
        self.listener(stage.name, {"state": "starting"})

    def _end_idle(self) -> None:
        import ray

        for actor, _ in self.idle:
            ray.kill(actor)
        self.idle.clear()

    def _not_on_heads(self) -> dict[str, str]:
        """A label that keeps what takes no CPU, but works, away from nodes without CPUs: a head that does no work."""
        heads = [node.labels[NODE_ID] for node in self.watch.there if node.cpus == 0 and NODE_ID in node.labels]
        return {NODE_ID: f"!in({','.join(heads)})"} if heads else {}

    def _finish(self, reference: Any) -> None:
        """Publish what a stage left, or try again if its process died, or raise what went wrong."""
        import ray

        entry = self.running.pop(reference)
        stage = entry.stage
        try:
            answer = ray.get(reference, timeout=60)
        except ray.exceptions.RayTaskError as error:  # stage errors are returned, so this is from its log
            ray.kill(entry.actor)
            raise StageError(f"{stage.name}: {error.cause}", "free some space there, or see its node") from error
        except ray.exceptions.RayError as error:
            unknown = isinstance(error, ray.exceptions.ActorUnavailableError)
            lost = entry.node is not None and node_is_gone(entry.node, NOTICED_TIMEOUT_S if unknown else 0.0)
            entry.nodes_lost += lost
            what = "its node was lost" if lost else "its process died"
            self._try_again(entry, what, type(error).__name__)
            return
        if "lost" in answer:
            if entry.node is not None:
                leaves = entry.node in draining_nodes() or node_is_gone(entry.node, ENDING_TIMEOUT_S)
                entry.nodes_lost += leaves
            self._try_again(entry, answer["lost"], answer["error"])
            return
        if "error" in answer:
            ray.kill(entry.actor)
            kind = UserError if answer["user"] else StageError
            hint = answer["hint"] or "see the log"
            raise kind(f"{stage.name}: {answer['error']}", f"{hint}; log: {self.handover.where_log_is(stage)}")
        self.pool.release(entry.node_slots, self.demands[stage.name])
        self.last_end = time.monotonic()
        wanted = any(other.started is None for other in self.running.values())  # what it holds they may wait for
        if wanted or entry.node in self.watch.leaving:
            ray.kill(entry.actor)
        else:
            self.idle.append((entry.actor, (stage.pool, self.demands[stage.name])))
        record = self.handover.record(stage, answer, entry.attempt)
        self.store.publish(stage.kind, stage.fingerprint, record)
        check_results(stage, answer["results"], self.experiment.require)
        self.listener(stage.name, {"state": "done", "duration_s": answer["duration_s"], "results": answer["results"]})

    def _try_again(self, entry: _Running, what: str, reason: str) -> None:
        """Start a stage anew whose actor is dead or hangs; StageError after MAX_ATTEMPTS."""
        import ray

        stage = entry.stage
        ray.kill(entry.actor)
        if shutil.disk_usage(self.store.root).free < FULL_BYTES:  # then a process may die of what it cannot write
            raise StageError(
                f"{stage.name}: {what} ({reason}), and no space is left in {self.store.root}",
                "free some space there; finished stages are kept",
            )
        if entry.attempt - entry.nodes_lost >= MAX_ATTEMPTS or entry.nodes_lost > MAX_NODES_LOST:
            raise StageError(
                f"{stage.name}: {what}, at attempt {entry.attempt} ({reason})",
                f"see {self.handover.where_log_is(stage)}",
            )
        self.listener(stage.name, {"state": "retry", "text": f"{what} ({reason}), attempt {entry.attempt + 1}"})
        if self.demands[stage.name].is_coordinator:  # its placement group may have leaked: removed when no other runs
            self.postponed.append(entry)
            self._resume_postponed()
        else:
            self._start(stage, entry.node_slots, entry.attempt + 1, entry.nodes_lost)

    def _resume_postponed(self) -> None:
        """Try distributed stages again whose actor died, once no other runs whose placement group might be removed."""
        coordinating = any(self.demands[other.stage.name].is_coordinator for other in self.running.values())
        if not self.postponed or coordinating:
            return
        from raq.cluster.ray_train import remove_leaked_groups

        remove_leaked_groups()
        for entry in self.postponed:
            stage = entry.stage
            self._start(stage, entry.node_slots, entry.attempt + 1, entry.nodes_lost)
        self.postponed.clear()

    def _show(self, events: list[dict[str, Any]]) -> None:
        running = {entry.stage.name: entry for entry in self.running.values()}
        for event in events:
            entry = running.get(event["stage"])
            if entry is not None and event["attempt"] == entry.attempt:  # else it is late: that attempt has ended
                entry.started = entry.started or time.monotonic()
                entry.node = event.get("node", entry.node)
                self.listener(event["stage"], {"state": "running", **event.get("progress", {})})

    def _refuse_to_wait_for_ever(self) -> None:
        """End what hangs; StageError if a stage does not start though none of ours is at work that it may wait for."""
        idle = all(entry.started is None for entry in self.running.values())
        for reference, entry in list(self.running.items()):
            limit = entry.stage.resources.timeout_s
            if entry.started is not None and limit is not None and time.monotonic() - entry.started > limit:
                del self.running[reference]
                self._try_again(entry, "it did not end in time", f"{limit:g} s")
                continue
            waited = time.monotonic() - max(entry.submitted, self.last_end)
            demand = self.demands[entry.stage.name]
            patience = max(LOST_TIMEOUT_S, self.wait_s)
            if entry.started is not None and not demand.is_coordinator:
                continue
            nodes = self.watch.there if entry.started is None else self.watch.alive
            if slots_for(entry.stage, nodes, demand) >= least_workers(entry.stage):
                entry.able = time.monotonic()
            if time.monotonic() - entry.able > patience:
                raise StageError(
                    f"{entry.stage.name}: nodes that it needs are gone, and none have come for {patience:.0f} s",
                    "finished stages are kept; bring them back, or wait for them with --wait",
                )
            longest = max(START_TIMEOUT_S, self.wait_s)
            if idle and entry.started is None and waited > longest:
                raise StageError(
                    f"{entry.stage.name}: no node started it within {longest:.0f} s",
                    "the cluster is busy, or its nodes are not well; see 'ray status'",
                )

    def _leave_nodes(self) -> None:
        """On a node that a notice says will be taken away nothing more starts.

        Ray sees to that; but actors that have ended what they did there are not taken again.
        """
        leaving = self.watch.look()
        for node, when in leaving.items():
            for name in [entry.stage.name for entry in self.running.values() if entry.node == node]:
                self.listener(name, {"text": f"its node will be taken away{when}", "notice": True})
        if leaving:
            self._end_idle()


def _drained(events: Any) -> list[dict[str, Any]]:
    """Events out of the queue; StageError if its process has died."""
    import ray

    try:
        taken: list[dict[str, Any]] = ray.get(events, timeout=TAKE_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise StageError(
            f"the process that stages report to died ({type(error).__name__})", "run again: finished stages are kept"
        ) from error
    return taken
