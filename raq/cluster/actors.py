"""Stages in Ray actors with resources of their own."""

import errno
import os
import time
import traceback
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raq.cluster.answers import Answer, ErrorAnswer, LostAnswer
from raq.cluster.events import EventSender
from raq.cluster.nodes import BENCH_RESOURCE, NODE_ID, Node, given_labels
from raq.cluster.resources import ActorKind
from raq.cluster.session import output_to
from raq.environment import Machine, environment
from raq.errors import LostError, RaqError, UserError, first_line
from raq.lazy import resolve
from raq.model.reading import recording_reads
from raq.plan.kinds import KINDS
from raq.stages.call import Call
from raq.stages.dispatch import run_stage
from raq.stages.transfer import at_hand, log_sent, store_of
from raq.store.files import now
from raq.store.local import CHECKPOINTS
from raq.store.object_storage import subscribed
from raq.store.settings import SourcesSettings

FULL = (errno.ENOSPC, errno.EDQUOT)


@ray.remote(max_restarts=0)
class StageActor:
    """A process that does stages one after the other; torch stays imported between them."""

    def __init__(self, queue: Any, gpus: int) -> None:
        self.queue = queue
        if gpus == 0:  # num_gpus=0 no longer hides the GPUs of the node
            os.environ["CUDA_VISIBLE_DEVICES"] = ""

    def run(self, call: Call, log: str, attempt: int) -> Answer | ErrorAnswer | LostAnswer:
        """Do a stage: its results with the environment they came from, or what went wrong."""
        send = EventSender(self.queue, call.name, attempt)
        store = store_of(call)
        execution, path = uuid.uuid4().hex, store.log(Path(log))
        with output_to(path), subscribed(send.notice), log_sent(call, path):
            send.at_work(ray.get_runtime_context().get_node_id())
            started, started_at = time.perf_counter(), now()
            try:
                here = at_hand(call)
                folder = Path(here.folder)
                store.fetch_checkpoint(folder, folder / CHECKPOINTS[0])
                covered = tuple(Path(p).resolve() for p in (here.data_root, here.weights_file, here.folder) if p)
                with recording_reads(here.read(SourcesSettings).sources, here.working_directory, covered) as read:
                    results = _do(here, send)
                results |= {"read_files": read} if read else {}
                digests = store.digests(folder)
                files = store.send_stage(folder, execution)
            except OSError as error:
                traceback.print_exc()
                place = f"{error.filename}: " if error.filename else ""
                hint = "free some space" if error.errno in FULL else "see the log"
                return ErrorAnswer(f"{place}{error.strerror or error}", hint, user=False)
            except LostError as error:
                traceback.print_exc()
                return LostAnswer("its workers were lost", error.message)
            except RaqError as error:
                traceback.print_exc()
                return ErrorAnswer(error.message, error.hint, user=isinstance(error, UserError))
            except SystemExit:  # by SIGTERM, as a node ends that is taken away, or by the user's code
                traceback.print_exc()
                return LostAnswer("its process was asked to end", "SystemExit")
            except Exception as error:
                traceback.print_exc()
                return ErrorAnswer(f"{type(error).__name__}: {first_line(error)}", "", user=False)
            return Answer(
                id=execution,
                results=results,
                files=files,
                digests=digests,
                environment=environment(),
                cpus=call.cpus,
                workers=call.workers,
                node=None if call.workers > 1 or call.elastic else _node(),  # several have theirs
                started_at=started_at,
                duration_s=round(time.perf_counter() - started, 3),
            )


def _node() -> dict[str, Any]:
    """Which node this is: its address and the labels that it was given."""
    labels = given_labels(ray.get_runtime_context().get_node_labels())
    return {"address": ray.util.get_node_ip_address(), "labels": labels}


def _do(call: Call, send: EventSender) -> dict[str, Any]:
    kind = KINDS[call.kind]
    if kind.distributed and (kind.is_sweep or call.workers > 1 or call.elastic):
        results: dict[str, Any] = resolve(kind.distributed)(call, send)
        return results
    return run_stage(call, send)


def start_actor(queue: Any, kind: ActorKind) -> Any:
    """An actor of this kind; one that measures marks its node as taken.

    One that waits for the workers of Ray Train or the trials of Ray Tune leaves the resources to them.
    """
    own_cpus, own_gpus = (0, 0) if kind.demand.is_coordinator else (kind.demand.cpus, kind.demand.gpus)
    whole = kind.demand.whole_node
    own_cpus = whole or own_cpus
    resources = {BENCH_RESOURCE: 1} if kind.measures and whole is None else {}
    options: dict[str, Any] = {"num_cpus": own_cpus, "num_gpus": own_gpus, "resources": resources}
    if kind.labels:
        options |= {"label_selector": dict(kind.labels)}
    actor: Any = StageActor  # ray.remote made it an actor class
    return actor.options(**options).remote(queue, kind.demand.gpus)


def _machine_there() -> Machine:
    from raq.environment import machine

    return machine()


def machine_to_measure_on(nodes: list[Node], labels: Mapping[str, str], timeout_s: float = 120.0) -> Machine:
    """What the machine is on which latencies will be measured: a node with `labels` that may measure, else any.

    Of several the one with the most CPUs, which is where a measurement has room. Raises UserError if they are not of
    one kind, or none answers in time.
    """
    able = [node for node in nodes if node.has(labels)] or nodes
    able = [node for node in able if node.bench] or able
    describe = ray.remote(num_cpus=0)(_machine_there)
    asked = [
        describe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.labels[NODE_ID], soft=False)).remote()
        for node in able
    ]
    answered = ray.wait(asked, num_returns=len(asked), timeout=timeout_s)[0] if asked else []
    machines: list[Machine] = []
    why = "no answer"
    for reference in answered:
        try:
            machines.append(ray.get(reference))
        except ray.exceptions.RayError as error:  # a node that has just been lost, and others are there
            why = type(error).__name__
    if not machines:
        raise UserError(
            f"the cluster did not answer within {timeout_s:.0f} s ({why})",
            "see 'ray status'; raq must be installed on its nodes",
        )
    kinds = sorted({f"{machine.cpu} ({' '.join(machine.features)})" for machine in machines})
    if len(kinds) > 1:
        raise UserError(
            f"the nodes that may measure are of {len(kinds)} kinds: {'; '.join(kinds)}",
            "choose those of one kind by their labels: resources.bench.labels",
        )
    return max(machines, key=lambda machine: (machine.cpus or 0, str(machine)))
