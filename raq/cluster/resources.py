"""What each stage takes of a cluster, and which of its nodes can give it. Imports neither torch nor ray."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TextIO

from raq.cluster.nodes import Node, nodes_now
from raq.errors import UserError
from raq.experiment.schema import Experiment
from raq.lazy import resolve
from raq.plan.kinds import KINDS
from raq.plan.stages import Stage
from raq.store.views import View, view

LOOK_AGAIN_S = 2.0
UNGUARDED = "no node declares the resource 'bench', so that only its CPUs being taken kept other work away"


@dataclass(frozen=True)
class Demand:
    """What each worker of a stage takes while it runs, and how many they are."""

    cpus: int
    gpus: int
    workers: int
    is_coordinator: bool = False  # the stage's actor only waits for its workers, which have the resources
    whole_node: int | None = None  # CPUs of a node that is taken whole, as nothing else keeps others away


@dataclass(frozen=True)
class ActorKind:
    """What an actor has. measures: it may measure, and nothing else runs there meanwhile; labels: of its node."""

    demand: Demand
    measures: bool = False
    labels: tuple[tuple[str, str], ...] = ()


class _Bench(View):
    threads: int | None = None
    streams: int | str | None = None


class _Asked(View):
    device: str = "cpu"
    bench: _Bench = _Bench()


def _asked(stage: Stage) -> _Asked:
    """Of a stage's settings, those that say what it needs."""
    return view(_Asked, stage.settings, f"{stage.name}: settings")


def demand_of(stage: Stage, nodes: list[Node]) -> Demand:
    """What a stage takes of these nodes; unset CPUs are all of a node's, or half of them for stages that run in pairs.

    For training, all are shared among its workers.

    Raises UserError if no node, or not all together, can give it: waiting would never end.
    """
    wants_gpu = stage.resources.gpus or int(_asked(stage).device == "cuda")
    labels = stage.resources.labels
    able = able_nodes(stage, nodes, 0, wants_gpu)
    largest = max((node.cpus for node in able), default=0)
    if not able or largest == 0:
        what = f"{wants_gpu} GPU" if wants_gpu else "the resource 'bench'" if stage.pool == "bench" else "a CPU"
        what += "".join(f", {key}={value}" for key, value in labels.items())
        raise UserError(
            f"{stage.name} needs a node with {what}, and the cluster has none",
            "change resources or bench.devices, or use a cluster that has it ('ray start' gives a node its labels with "
            """--labels, and makes it one that may measure with --resources='{"bench": 1}')""",
        )
    total = sum(node.cpus for node in able)
    if KINDS[stage.kind].is_sweep:
        return _demand_of_sweep(stage, able, wants_gpu)
    shares = 2 if KINDS[stage.kind].in_pairs and stage.pool != "bench" else 1  # on a GPU each runs alone
    cpus = stage.resources.cpus or max(1, min(largest // shares, total // stage.workers))
    bench = _asked(stage).bench
    for key, asked in (("threads", bench.threads), ("streams", bench.streams)):
        if isinstance(asked, int) and asked > cpus:
            raise UserError(
                f"bench.{key} is {asked}, and {stage.name} has {cpus} CPUs",
                f"lower it to at most {cpus}, or leave it out",
            )
    if cpus > largest:
        raise UserError(
            f"resources.{stage.pool}.cpus is {cpus}, and the largest node has {largest} CPUs",
            f"lower it to at most {largest}, or leave it out",
        )
    node_slots, least = _slots_on(able, cpus, wants_gpu), least_workers(stage)
    if node_slots < least:
        raise UserError(
            f"{stage.name} asks for {least} workers of {cpus} CPUs and {wants_gpu} GPUs, and the "
            f"cluster has room for {node_slots}",
            "lower workers, or resources of each",
        )
    return Demand(
        cpus,
        wants_gpu,
        min(stage.workers, node_slots),
        is_coordinator=stage.workers > 1 or stage.least_workers is not None,
        whole_node=largest if stage.pool == "bench" and not any(node.guarded for node in able) else None,
    )


def _demand_of_sweep(stage: Stage, able: list[Node], gpus: int) -> Demand:
    """As many trials at a time as there is room for, and trials; one CPU a worker if nothing else is asked for.

    A trial of several workers has room where all of them have: their number is a multiple of a trial's.
    """
    cpus = stage.resources.cpus or 1
    node_slots = _slots_on(able, cpus, gpus)
    if node_slots < stage.workers:
        raise UserError(
            f"resources.{stage.pool}: a trial of {stage.name} wants {stage.workers} x {cpus} CPUs and {gpus} GPUs, "
            f"and the cluster has room for {node_slots} such workers",
            "lower them, or leave them out",
        )
    at_once = node_slots // stage.workers
    return Demand(cpus, gpus, stage.workers * min(at_once, trials_of(stage) or at_once), is_coordinator=True)


def least_workers(stage: Stage) -> int:
    """How many workers there must be room for; of a sweep, those of a trial."""
    return stage.least_workers or stage.workers


def slots_for(stage: Stage, nodes: list[Node], demand: Demand) -> int:
    """For how many workers of a stage these nodes have room, if nothing else runs."""
    return _slots_on(able_nodes(stage, nodes, demand.cpus, demand.gpus), demand.cpus, demand.gpus)


def _slots_on(nodes: list[Node], cpus: int, gpus: int) -> int:
    return sum(min(node.cpus // cpus, node.gpus // gpus if gpus else node.cpus) for node in nodes)


def able_nodes(stage: Stage, nodes: list[Node], cpus: int, gpus: int) -> list[Node]:
    """The nodes that have so much to give, the labels asked for, and, for a measurement, the resource 'bench'."""
    return [
        node
        for node in nodes
        if node.cpus >= cpus
        and node.gpus >= gpus
        and (node.bench or stage.pool != "bench")
        and node.has(stage.resources.labels)
    ]


class ResourcePool:
    """What is free on each node. Ray decides where things go; this says whether all of a stage fits."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.free = [[node.cpus, node.gpus] for node in nodes]

    def acquire(self, stage: Stage, demand: Demand) -> list[int] | None:
        """A node for each worker, the first that have room, now taken; None, and none taken, if there are too few."""
        able = {id(node) for node in able_nodes(stage, self.nodes, demand.cpus, demand.gpus)}
        taken: list[int] = []
        for number, node in enumerate(self.nodes):
            cpus, gpus = self.free[number]
            while id(node) in able and len(taken) < demand.workers and cpus >= demand.cpus and gpus >= demand.gpus:
                taken.append(number)
                cpus, gpus = cpus - demand.cpus, gpus - demand.gpus
        if len(taken) < demand.workers:
            return None
        self._change(taken, demand, -1)
        return taken

    def release(self, taken: list[int], demand: Demand) -> None:
        """Free these node slots."""
        self._change(taken, demand, 1)

    def _change(self, node_slots: list[int], demand: Demand, sign: int) -> None:
        for number in node_slots:
            self.free[number][0] += sign * demand.cpus
            self.free[number][1] += sign * demand.gpus


def nodes_in_time(experiment: Experiment, wait_s: float, output: TextIO) -> list[Node]:
    """The nodes of the cluster, as soon as all that the experiment asks for are there, else after wait_s."""
    until, said = time.monotonic() + wait_s, ""
    while True:
        nodes = nodes_now()
        lacking = _lacking(experiment, nodes)
        if not lacking or time.monotonic() >= until:
            return nodes
        if lacking != said:
            output.write(f"waiting at most {wait_s:.0f} s for {lacking}\n")
            output.flush()
            said = lacking
        time.sleep(LOOK_AGAIN_S)


def _lacking(experiment: Experiment, nodes: list[Node]) -> str:
    """In words: nodes that the experiment asks for and that are not there; empty if there are all."""
    trainings = [part.workers for part in (experiment.train, experiment.qat) if part is not None]
    workers = max(count if isinstance(count, int) else count[0] for count in trainings)
    for pool, wanted in (("train", workers), ("quantize", 1), ("bench", 1)):
        asked = getattr(experiment.resources, pool)
        able = [n for n in nodes if n.gpus >= asked.gpus and n.has(asked.labels) and (n.bench or pool != "bench")]
        node_slots = _slots_on(able, asked.cpus or 1, asked.gpus)
        if node_slots < wanted:
            return f"nodes for {pool}: there is room for {node_slots} of {wanted}"
    return ""


def placement(stage: Stage, nodes: list[Node]) -> str:
    """In words: what a stage takes, and which of these nodes can give it. Raises UserError if none can."""
    demand = demand_of(stage, nodes)
    each = f"{demand.cpus} CPU{'s' if demand.cpus > 1 else ''}"
    each += f", {demand.gpus} GPU{'s' if demand.gpus > 1 else ''}" if demand.gpus else ""
    what = f"{demand.workers} x {each}" if demand.workers > 1 else each
    names = sorted({node.name for node in able_nodes(stage, nodes, demand.cpus, demand.gpus)})
    if demand.whole_node is not None:
        return f"{what} on {' or '.join(names)}, which it takes whole ({UNGUARDED})"
    return f"{what} on {' or '.join(names)}" + (", alone" if stage.pool == "bench" else "")


def unguarded_note(plan: Iterable[Stage], nodes: list[Node]) -> str | None:
    """What a run should say of measurements that nothing keeps others away from; None if something does."""
    measuring = [stage for stage in plan if stage.pool == "bench"]
    if any(demand_of(stage, nodes).whole_node is not None for stage in measuring):
        return f"measured on a whole node, and {UNGUARDED}"
    return None


def trials_of(stage: Stage) -> int | None:
    """How many trials a sweep has, at most; None if that is known only when the network is exported."""
    counted = KINDS[stage.kind].trial_count
    return None if counted is None else int(resolve(counted)(stage.settings))
