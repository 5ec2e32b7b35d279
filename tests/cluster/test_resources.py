"""What stages take of nodes, and which nodes can give it."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raq.cluster import resources as placement
from raq.cluster.nodes import Node
from raq.cluster.ray_train import workers_of
from raq.cluster.resources import Demand, ResourcePool, demand_of, least_workers, nodes_in_time, slots_for
from raq.errors import UserError
from raq.experiment.execution import Resources
from raq.experiment.load import load_experiment
from raq.plan.stages import Stage
from raq.stages.call import Call

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


@pytest.mark.parametrize(
    ("pool", "resources", "workers", "machines", "expected"),
    [
        ("train", {}, 1, [Node(4, 0, True)], Demand(4, 0, 1)),
        ("train", {}, 2, [Node(4, 0, True)], Demand(2, 0, 2, is_coordinator=True)),
        ("train", {"cpus": 3}, 2, [Node(4, 0, False), Node(4, 0, True)], Demand(3, 0, 2, is_coordinator=True)),
        ("train", {"gpus": 1}, 2, [Node(8, 2, False), Node(64, 0, True)], Demand(4, 1, 2, is_coordinator=True)),
        ("bench", {}, 1, [Node(64, 0, False), Node(8, 0, True)], Demand(8, 0, 1)),
        (
            "train",
            {"labels": {"role": "a"}},
            1,
            [Node(4, 0, True), Node(2, 0, False, "n", {"role": "a"})],
            Demand(2, 0, 1),
        ),
        ("train", {"labels": {"role": "a"}}, 1, [Node(4, 0, True, "n", {"role": "b"})], "a CPU, role=a"),
        ("train", {"cpus": 3}, 2, [Node(4, 0, True)], "has room for 1"),
        ("train", {"cpus": 5}, 1, [Node(4, 0, True)], "largest node has 4"),
        ("train", {"gpus": 1}, 3, [Node(8, 2, True)], "has room for 2"),
        ("bench", {}, 1, [Node(8, 0, False)], "the resource 'bench'"),
        ("bench", {}, 1, [Node(8, 0, True, guarded=False)], Demand(8, 0, 1, whole_node=8)),
        ("bench", {"cpus": 2}, 1, [Node(8, 0, True, guarded=False)], Demand(2, 0, 1, whole_node=8)),
        ("train", {}, 1, [Node(0, 0, True)], "a CPU"),
    ],
)
def test_demands(pool: Any, resources: dict[str, Any], workers: int, machines: list[Node], expected: Any) -> None:
    stage = Stage(pool, pool, pool, {}, {}, "f", Resources(**resources), workers)
    if isinstance(expected, Demand):
        assert demand_of(stage, machines) == expected
    else:
        with pytest.raises(UserError, match=expected):
            demand_of(stage, machines)


@pytest.mark.parametrize(
    ("asked", "nodes", "cpus", "room"),
    [(None, [2], 1, 2), (None, [1], 1, 1), (None, [5, 2], 2, 3), (3, [4], 3, 1)],
)
def test_two_of_what_takes_one_cpu_most_of_the_time_share_a_node(
    asked: int | None, nodes: list[int], cpus: int, room: int
) -> None:
    """lower and evaluate, unless the experiment says what they get; calibration has all of a node."""
    machines = [Node(count, 0, True) for count in nodes]
    lower = Stage("lower/ptq", "lower", "quantize", {}, {}, "f", Resources(cpus=asked))
    demand = demand_of(lower, machines)
    assert (demand, slots_for(lower, machines, demand)) == (Demand(cpus, 0, 1), room)
    assert demand_of(replace(lower, name="evaluate/ptq", kind="evaluate"), machines).cpus == cpus
    assert demand_of(replace(lower, name="ptq", kind="ptq"), machines).cpus == (asked or max(nodes))


def test_demands_of_elastic_training() -> None:
    """As many workers as there is room for; its actor only waits, even for a single one."""
    small = Node(1, 0, True)
    stage = Stage("train", "train", "train", {}, {}, "f", Resources(), workers=4, least_workers=2)
    assert demand_of(stage, [small] * 3) == Demand(1, 0, 3, is_coordinator=True)
    assert demand_of(replace(stage, workers=1, least_workers=1), [small]) == Demand(1, 0, 1, is_coordinator=True)
    with pytest.raises(UserError, match="asks for 2 workers of 1 CPUs and 0 GPUs, and the cluster has room for 1"):
        demand_of(stage, [small])


def test_room_after_a_node_was_lost_is_that_of_the_others() -> None:
    """What decides whether a stage may go on waiting: room for its least workers, not one node that could take one."""
    two, one = [Node(4, 0, True), Node(4, 0, False)], [Node(4, 0, True)]
    fixed = Stage("train", "train", "train", {}, {}, "f", Resources(cpus=4), workers=2)
    elastic = replace(fixed, workers=4, least_workers=1)
    demand = demand_of(fixed, two)
    assert (slots_for(fixed, two, demand), slots_for(fixed, one, demand), least_workers(fixed)) == (2, 1, 2)
    assert least_workers(elastic) == 1


def test_room_is_that_of_nodes_not_of_all_together() -> None:
    """Two nodes of eight CPUs have room for four actors of three, not for five; labels choose the node."""
    nodes = [Node(8, 0, True, "a", {"role": "a"}), Node(8, 1, False, "b", {"role": "b"})]
    pool, stage = ResourcePool(nodes), Stage("ptq", "ptq", "quantize", {}, {}, "f", Resources(cpus=3))
    three = Demand(3, 0, 1)
    taken = [pool.acquire(stage, three) for _ in range(5)]
    assert taken == [[0], [0], [1], [1], None]
    pool.release([1], three)
    on_a = replace(stage, resources=Resources(labels={"role": "a"}))
    assert pool.acquire(on_a, three) is None
    assert pool.acquire(stage, Demand(3, 0, 2)) is None, "all workers or none"
    assert pool.acquire(stage, Demand(3, 1, 1)) == [1]
    bench = Stage("bench", "bench", "bench", {}, {}, "f", Resources())
    assert ResourcePool(nodes).acquire(bench, Demand(8, 0, 1)) == [0]
    assert ResourcePool(nodes[1:]).acquire(bench, Demand(8, 0, 1)) is None


def test_nodes_that_are_just_coming_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the two workers of a training, and a node that may measure, have room; each lack is said once."""
    comes = iter(
        [[], [Node(1, 0, False)], [Node(1, 0, False)], [Node(2, 0, False)], [Node(2, 0, False), Node(1, 0, True)]]
    )
    monkeypatch.setattr(placement, "nodes_now", lambda: next(comes))
    monkeypatch.setattr(placement, "LOOK_AGAIN_S", 0.0)
    experiment, said = load_experiment(QUICKSTART, ["train.workers=2"]), io.StringIO()
    assert nodes_in_time(experiment, 60.0, said) == [Node(2, 0, False), Node(1, 0, True)]
    assert said.getvalue().splitlines() == [
        "waiting at most 60 s for nodes for train: there is room for 0 of 2",
        "waiting at most 60 s for nodes for train: there is room for 1 of 2",
        "waiting at most 60 s for nodes for bench: there is room for 0 of 1",
    ]


def test_without_a_wait_what_is_there_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "nodes_now", list)
    assert nodes_in_time(load_experiment(QUICKSTART, []), 0.0, io.StringIO()) == []


@pytest.mark.parametrize(
    ("gpus", "elastic", "taken", "backend"),
    [(0, None, {"CPU": 3}, "gloo"), (1, None, {"CPU": 3, "GPU": 1}, "nccl"), (2, (1, 4), {"CPU": 3, "GPU": 2}, "nccl")],
)
def test_workers_with_gpus_exchange_gradients_by_nccl(
    gpus: int, elastic: tuple[int, int] | None, taken: dict[str, int], backend: str
) -> None:
    """Each worker has its GPUs of the cluster; on one, NCCL itself has not been run."""
    call = Call(name="train", kind="train", settings={}, inputs={}, folder="", cpus=3, gpus=gpus, workers=2,
                elastic=elastic, labels={"role": "gpu"})  # fmt: skip
    scaling, torch_config = workers_of(call)
    assert (scaling.num_workers, scaling.use_gpu) == (elastic or 2, gpus > 0)
    assert scaling.resources_per_worker == taken
    assert scaling.label_selector == {"role": "gpu"}
    assert torch_config.backend == backend
