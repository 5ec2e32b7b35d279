"""The nodes of a cluster: what each has to give, which are alive, and which are draining (will be taken away)."""

import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from raq.environment import available_cpus, gpus

BENCH_RESOURCE = "bench"
NODE_ID = "ray.io/node-id"  # a label that Ray gives every node
LOOK_EVERY_S = 5.0
ENDING_TIMEOUT_S = 5.0  # a node that is shut down is reported dead within that
NOTICED_TIMEOUT_S = (
    30.0  # Ray marks a node dead that does not answer (health_check_* of ray start); until then it schedules there
)


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has to give.

    bench: whether it may measure; guarded: whether the resource 'bench' keeps other measurements away meanwhile.
    """

    cpus: int
    gpus: int
    bench: bool
    name: str = "this machine"
    labels: Mapping[str, str] = field(default_factory=dict)
    guarded: bool = True

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether the node has all of these labels."""
        return all(self.labels.get(key) == value for key, value in labels.items())


def local_node() -> Node:
    """What a cluster that raq starts on this machine will have."""
    return Node(len(available_cpus()), len(gpus()), True)


@dataclass
class NodeWatch:
    """The nodes while a run goes on."""

    there: list[Node]  # live and not draining, at the last refresh
    alive: list[Node] = field(init=False)  # all live ones, the draining ones too
    leaving: dict[str, str] = field(default_factory=dict)  # by id, and when, in words
    looked: float = 0.0  # when Ray was asked, the last time

    def __post_init__(self) -> None:
        self.alive = self.there

    def refresh(self) -> dict[str, str]:
        """Refresh the lists, at most every LOOK_EVERY_S; the nodes that started draining since: by id, when they
        end."""
        if time.monotonic() - self.looked < LOOK_EVERY_S:
            return {}
        self.looked = time.monotonic()
        leaving = draining_nodes()
        self.alive, self.there = nodes_now(exclude=()), nodes_now(exclude=leaving)
        new = {node: when for node, when in leaving.items() if node not in self.leaving}
        self.leaving |= new
        return new


_DECLARED: set[str] = set()  # ids of nodes that were seen with the resource 'bench'


def nodes_now(exclude: Container[str] | None = None) -> list[Node]:
    """The live nodes, without those of these ids; by default without the draining ones, which will be taken away.

    Where no node has ever declared the resource 'bench', as after a plain `ray start`, each may measure.
    """
    import ray

    leaving = draining_nodes() if exclude is None else exclude
    _DECLARED.update(node["NodeID"] for node in ray.nodes() if BENCH_RESOURCE in node["Resources"])
    return [
        Node(
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            BENCH_RESOURCE in node["Resources"] or not _DECLARED,
            node["NodeManagerAddress"]
            + "".join(f" {key}={value}" for key, value in given_labels(node["Labels"]).items()),
            node["Labels"],
            BENCH_RESOURCE in node["Resources"],
        )
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
    ]


def draining_nodes() -> dict[str, str]:
    """The nodes that a notice says will be taken away, by id, and when, in words (" in 30 s"; empty if unknown)."""
    from ray._private.state import state  # Ray Train's own watcher reads it there

    now_ms = time.time() * 1000
    nodes: dict[str, int] = state.get_draining_nodes()
    return {node: f" in {max(0, end_ms - now_ms) / 1000:.0f} s" if end_ms else "" for node, end_ms in nodes.items()}


def node_is_gone(identity: str, timeout_s: float) -> bool:
    """Wait up to timeout_s for Ray to report the node with this id dead; whether it did."""
    import ray

    until = time.monotonic() + timeout_s
    while any(node["NodeID"] == identity and node["Alive"] for node in ray.nodes()):
        if time.monotonic() >= until:
            return False
        time.sleep(0.5)
    return True


def given_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels that a node was given, without those that Ray gives every node."""
    return {key: value for key, value in labels.items() if not key.startswith("ray.io/")}
