"""The nodes of a cluster: what each has to give, which are there, and which a notice says will be taken away."""

import time
from collections.abc import Container, Mapping
from dataclasses import dataclass, field

from raq.environment import available_cpus, gpus

BENCH_RESOURCE = "bench"
NODE_ID = "ray.io/node-id"  # a label that Ray gives every node
LOOK_EVERY_S = 5.0
ENDING_TIMEOUT_S = 5.0  # until a node is dead that has asked its processes to end
NOTICED_TIMEOUT_S = 30.0  # until Ray calls a node dead that has stopped answering; before, it starts actors there


@dataclass(frozen=True)
class Node:
    """What one node of the cluster has to give."""

    cpus: int
    gpus: int
    bench: bool
    name: str = "this machine"
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether the node has all of these labels."""
        return all(self.labels.get(key) == value for key, value in labels.items())


def local_node() -> Node:
    """What a cluster that raq starts on this machine will have."""
    return Node(len(available_cpus()), len(gpus()), True)


@dataclass
class NodeWatch:
    """The nodes while a run goes on."""

    there: list[Node]  # those that live and stay, as seen the last time
    alive: list[Node] = field(init=False)  # and those that live and will be taken away
    leaving: dict[str, str] = field(default_factory=dict)  # by id, and when, in words
    looked: float = 0.0  # when Ray was asked, the last time

    def __post_init__(self) -> None:
        self.alive = self.there

    def look(self) -> dict[str, str]:
        """Ask Ray, at most every LOOK_EVERY_S; the nodes of which it is new that they will be taken away."""
        if time.monotonic() - self.looked < LOOK_EVERY_S:
            return {}
        self.looked = time.monotonic()
        leaving = draining_nodes()
        self.alive, self.there = nodes_now(but=()), nodes_now(but=leaving)
        new = {node: when for node, when in leaving.items() if node not in self.leaving}
        self.leaving |= new
        return new


def nodes_now(but: Container[str] | None = None) -> list[Node]:
    """The nodes that live, but for these, by id; by default, those that a notice says will be taken away."""
    import ray

    leaving = draining_nodes() if but is None else but
    return [
        Node(
            int(node["Resources"].get("CPU", 0)),
            int(node["Resources"].get("GPU", 0)),
            BENCH_RESOURCE in node["Resources"],
            node["NodeManagerAddress"]
            + "".join(f" {key}={value}" for key, value in given_labels(node["Labels"]).items()),
            node["Labels"],
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
    """Whether this node is dead, by its id, as soon as that is known, or not after timeout_s."""
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
