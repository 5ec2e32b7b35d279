"""What may start on nodes that are made up, without Ray."""

from pathlib import Path
from typing import Any

import pytest

from raq.cluster.driver import Driver
from raq.cluster.nodes import Node
from raq.cluster.scheduling import Scheduler
from raq.errors import UserError
from raq.experiment.execution import Resources
from raq.experiment.schema import Experiment
from raq.plan.stages import Stage
from raq.store.local import Store

NODE = Node(4, 0, True)


def stage(name: str, kind: str = "ptq", inputs: tuple[str, ...] = (), workers: int = 1, **resources: Any) -> Stage:
    pool = {"bench": "bench", "train": "train"}.get(kind, "quantize")
    return Stage(name, kind, pool, {}, {n: n for n in inputs}, "f", Resources(**resources), workers)  # type: ignore[arg-type]


def names(found: list[Any]) -> list[str]:
    return [start.stage.name for start in found]


def test_a_stage_starts_when_its_inputs_are_there_and_it_fits() -> None:
    plan = [stage("train", "train"), stage("a", inputs=("train",), cpus=2), stage("b", inputs=("train",), cpus=2),
            stage("c", inputs=("train",), cpus=2), stage("other", cpus=1)]  # fmt: skip
    scheduler = Scheduler(plan, [NODE])
    first = scheduler.take_startable({}, ())
    assert names(first) == ["train"], "the others wait for it, and what does not has no room"
    assert names(scheduler.take_startable({"train": plan[0]}, ())) == []
    scheduler.release(first[0])
    two = scheduler.take_startable({}, ())
    assert names(two) == ["a", "b"]
    assert [start.node_slots for start in two] == [[0], [0]]
    scheduler.release(two[0])
    assert names(scheduler.take_startable({"b": plan[2]}, ())) == ["c"], "in the plan's order"
    assert list(scheduler.waiting) == ["other"]


def test_a_stage_waits_for_an_input_that_is_postponed() -> None:
    scheduler = Scheduler([stage("a", inputs=("train",))], [NODE])
    assert names(scheduler.take_startable({}, {"train"})) == []
    assert names(scheduler.take_startable({}, ())) == ["a"]


def test_a_measurement_runs_alone() -> None:
    plan = [stage("x", cpus=1), stage("bench/cpu", "bench"), stage("y", cpus=1)]
    scheduler = Scheduler(plan, [NODE, NODE])
    assert names(scheduler.take_startable({}, ())) == ["x", "y"]
    assert names(scheduler.take_startable({"x": plan[0]}, ())) == []
    assert names(scheduler.take_startable({}, ())) == ["bench/cpu"]
    scheduler.waiting["z"] = plan[0]
    assert names(scheduler.take_startable({"bench/cpu": plan[1]}, ())) == [], "nothing starts beside it"


def test_no_distributed_stage_starts_while_one_waits_for_its_next_attempt() -> None:
    wide, narrow = stage("wide", "train", workers=2, cpus=2), stage("narrow", cpus=1)
    scheduler = Scheduler([wide, narrow], [NODE, NODE])
    assert names(scheduler.take_startable({}, {"another"})) == ["narrow"]
    (started,) = scheduler.take_startable({"narrow": narrow}, ())
    assert started.stage is wide
    assert len(started.node_slots) == 2


def test_what_no_node_can_do_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="largest node has 4"):
        Scheduler([stage("a", cpus=5)], [NODE])


def test_an_idle_process_does_stages_of_another_pool() -> None:
    """Torch is imported once for all that take the same; what measures, or needs other nodes, has its own."""
    plan = [stage("train", "train"), stage("a"), stage("gpu", gpus=1), stage("there", labels={"role": "x"}),
            stage("bench/cpu", "bench")]  # fmt: skip
    node = Node(4, 1, True, labels={"role": "x"})
    driver = Driver(Experiment(name="x"), plan, Store(Path()), Path(), [node], lambda stage, event: None, "")
    driver.scheduler = Scheduler(plan, [node])
    train, *others = (driver._kind_of_actor(each) for each in plan)
    assert [kind == train for kind in others] == [True, False, False, False]
