"""Runs the stale stages of a plan on the cluster, several at a time where they fit, and publishes their records."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raq.cluster.answers import Answer, ErrorAnswer, LostAnswer
from raq.cluster.attempts import Attempt, TimeOuts, refuse_another_attempt
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
from raq.cluster.resources import ActorKind
from raq.cluster.scheduling import Scheduler, Start
from raq.errors import StageError, UserError
from raq.experiment.schema import Experiment
from raq.plan.requirements import check_results
from raq.plan.stages import Stage
from raq.store.local import Store

if TYPE_CHECKING:
    from raq.cluster.events import Event

DRAIN_TIMEOUT_S = 5.0
LAST_EVENTS_S = 0.2
Listener = Callable[[str, dict[str, Any]], None]  # (stage, what of it)


@dataclass
class Driver:
    """One run's stages on a cluster that is already there: their actors, their answers, their records.

    scheduling.py says what may start, attempts.py what is tried again or waited for, nodes.py which nodes there are.
    """

    experiment: Experiment
    plan: list[Stage]
    store: Store
    run_folder: Path
    nodes: list[Node]
    listener: Listener
    working_directory: str
    wait_s: float = 0.0  # how long to wait for nodes in place of those that are lost
    running: dict[Any, Attempt] = field(default_factory=dict)  # by the reference of the actor's answer
    idle: list[tuple[Any, ActorKind]] = field(default_factory=list)
    postponed: list[Attempt] = field(default_factory=list)  # to be tried again when no other distributed stage runs
    handover: Handover = field(init=False)
    scheduler: Scheduler = field(init=False)
    time_outs: TimeOuts = field(init=False)
    watch: NodeWatch = field(init=False)
    queue: Any = field(init=False)

    def __post_init__(self) -> None:
        self.handover = Handover(
            self.experiment, self.plan, self.store, self.run_folder, self.working_directory, self.wait_s
        )
        self.time_outs = TimeOuts(self.wait_s)
        self.watch = NodeWatch(self.nodes)

    def run(self, stale: Mapping[str, str]) -> None:
        """Do the stale stages; raises the first failure, with nothing left running."""
        import ray

        from raq.cluster.events import start_event_queue

        self.scheduler = Scheduler([stage for stage in self.plan if stage.name in stale], self.nodes)
        self.queue = start_event_queue()
        events = self.queue.drain.remote(DRAIN_TIMEOUT_S)
        try:
            while self.scheduler.waiting or self.running or self.postponed:
                self._resume_postponed()
                running = {attempt.stage.name: attempt.stage for attempt in self.running.values()}
                for start in self.scheduler.take_startable(running, {each.stage.name for each in self.postponed}):
                    self._start(start)
                finished, _ = ray.wait([*self.running, events], num_returns=1, timeout=2 * DRAIN_TIMEOUT_S)
                if events not in finished:  # events of a stage are shown before its end
                    ray.wait([events], timeout=LAST_EVENTS_S)
                # take every finished one, so that a queued result is not mistaken for a time-out
                everything = [*self.running, events]
                finished, _ = ray.wait(everything, num_returns=len(everything), timeout=0)
                if events in finished:
                    self._show(_drained(events))
                    events = self.queue.drain.remote(DRAIN_TIMEOUT_S)
                for reference in [each for each in finished if each in self.running]:
                    self._finish(reference)
                self._leave_nodes()
                self.store.check_lease()
                self._end_overdue()
        finally:
            for attempt in self.running.values():
                ray.kill(attempt.actor)
            self._end_idle()
            ray.kill(self.queue)

    def _start(self, start: Start, number: int = 1, nodes_lost: int = 0) -> None:
        from raq.cluster.actors import start_actor

        stage = start.stage
        demand, kind = self.scheduler.demands[stage.name], self._kind_of_actor(stage)
        actor = next((idle for idle, of in self.idle if of == kind), None) if number == 1 else None
        if actor is None:  # a new one: what the idle ones hold it may need, and a node that was lost has theirs too
            self._end_idle()
            actor = start_actor(self.queue, kind)
        else:
            self.idle.remove((actor, kind))
        log = self.handover.log_of(stage)
        reference = actor.run.remote(self.handover.call(stage, demand), str(log), number)
        now = time.monotonic()
        self.running[reference] = Attempt(start, actor, number, now, now, nodes_lost)
        self.listener(stage.name, {"state": "starting"})

    def _kind_of_actor(self, stage: Stage) -> ActorKind:
        """What the actor of a stage has to be: those of other pools are as good, if they have the same."""
        demand = self.scheduler.demands[stage.name]
        labels = {**stage.resources.labels, **(self._not_on_heads() if demand.is_coordinator else {})}
        return ActorKind(demand, stage.pool == "bench", tuple(sorted(labels.items())))

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

        attempt = self.running.pop(reference)
        stage = attempt.stage
        try:
            answer = ray.get(reference, timeout=60)
        except ray.exceptions.RayTaskError as error:  # stage errors are returned: this one came from writing the log
            ray.kill(attempt.actor)
            raise StageError(f"{stage.name}: {error.cause}", "free some space there, or see its node") from error
        except ray.exceptions.RayError as error:
            unknown = isinstance(error, ray.exceptions.ActorUnavailableError)
            lost = attempt.node is not None and node_is_gone(attempt.node, NOTICED_TIMEOUT_S if unknown else 0.0)
            attempt.nodes_lost += lost
            what = "its node was lost" if lost else "its process died"
            self._try_again(attempt, what, type(error).__name__)
            return
        if isinstance(answer, LostAnswer):
            if attempt.node is not None:
                leaves = attempt.node in draining_nodes() or node_is_gone(attempt.node, ENDING_TIMEOUT_S)
                attempt.nodes_lost += leaves
            self._try_again(attempt, answer.lost, answer.error)
            return
        if isinstance(answer, ErrorAnswer):
            ray.kill(attempt.actor)
            kind = UserError if answer.user else StageError
            hint = answer.hint or "see the log"
            raise kind(f"{stage.name}: {answer.error}", f"{hint}; log: {self.handover.where_log_is(stage)}")
        self._publish(attempt, answer)

    def _publish(self, attempt: Attempt, answer: Answer) -> None:
        """Keep what a finished stage left, and its actor for the next one, if nothing waits for what that holds."""
        import ray

        stage = attempt.stage
        self.scheduler.release(attempt.start)
        self.time_outs.last_end = time.monotonic()
        others_wait = any(other.started is None for other in self.running.values())
        if others_wait or attempt.node in self.watch.leaving:
            ray.kill(attempt.actor)
        else:
            self.idle.append((attempt.actor, self._kind_of_actor(stage)))
        record = self.handover.record(stage, answer, attempt.number)
        self.store.publish(stage.kind, stage.fingerprint, record)
        check_results(stage, answer.results, self.experiment.require)
        self.listener(stage.name, {"state": "done", "duration_s": answer.duration_s, "results": answer.results})

    def _try_again(self, attempt: Attempt, what: str, reason: str) -> None:
        """Start a stage anew whose actor is dead or hangs; StageError if it has been tried often enough."""
        import ray

        stage = attempt.stage
        ray.kill(attempt.actor)
        free_bytes = shutil.disk_usage(self.store.root).free
        log = self.handover.where_log_is(stage)
        refuse_another_attempt(attempt, what, reason, free_bytes, str(self.store.root), log)
        self.listener(stage.name, {"state": "retry", "text": f"{what} ({reason}), attempt {attempt.number + 1}"})
        if self.scheduler.is_coordinator(stage):  # its placement group may have leaked: removed when no other one runs
            self.postponed.append(attempt)
            self._resume_postponed()
        else:
            self._start(attempt.start, attempt.number + 1, attempt.nodes_lost)

    def _resume_postponed(self) -> None:
        """Try distributed stages again whose actor died, once no other runs whose placement group might be removed."""
        coordinating = any(self.scheduler.is_coordinator(other.stage) for other in self.running.values())
        if not self.postponed or coordinating:
            return
        from raq.cluster.ray_train import remove_leaked_groups

        remove_leaked_groups()
        for attempt in self.postponed:
            self._start(attempt.start, attempt.number + 1, attempt.nodes_lost)
        self.postponed.clear()

    def _show(self, events: "list[Event]") -> None:
        running = {attempt.stage.name: attempt for attempt in self.running.values()}
        for event in events:
            attempt = running.get(event.stage)
            if attempt is not None and event.attempt == attempt.number:  # else it is late: that attempt has ended
                attempt.started = attempt.started or time.monotonic()
                attempt.node = event.node or attempt.node
                self.listener(event.stage, {"state": "running", **event.progress})

    def _end_overdue(self) -> None:
        """Try again what has taken longer than it may; StageError if waiting for another has no end."""
        for reference, attempt in list(self.running.items()):
            demand = self.scheduler.demands[attempt.stage.name]
            others = self.running.values()
            if self.time_outs.check(attempt, demand, self.watch.there, self.watch.alive, others) == "overdue":
                del self.running[reference]
                self._try_again(attempt, "it did not end in time", f"{attempt.stage.resources.timeout_s:g} s")

    def _leave_nodes(self) -> None:
        """On a node that a notice says will be taken away nothing more starts.

        Ray sees to that; but actors that have ended what they did there are not taken again.
        """
        leaving = self.watch.refresh()
        for node, when in leaving.items():
            for name in [attempt.stage.name for attempt in self.running.values() if attempt.node == node]:
                self.listener(name, {"text": f"its node will be taken away{when}", "notice": True})
        if leaving:
            self._end_idle()


def _drained(events: Any) -> "list[Event]":
    """Events out of the queue; StageError if its process has died."""
    import ray

    try:
        taken: list[Event] = ray.get(events, timeout=DRAIN_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise StageError(
            f"the process that stages report to died ({type(error).__name__})", "run again: finished stages are kept"
        ) from error
    return taken
