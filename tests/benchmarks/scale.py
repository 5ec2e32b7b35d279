"""What a thousand candidates cost the process that drives them.

    uv run python tests/benchmarks/scale.py [--candidates 1000]

The driver, its store and a real Ray are what they are; the stages are simulated: one process answers for the actors of
fifty nodes, after some milliseconds, with a small file and plausible results. Reported are seconds of the driver's CPU
time a candidate (three stages each), how its resident memory grows, and what listing and finding records takes. The
record goes to results/reference/scale.json.
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import ray

from raq.cluster import actors
from raq.cluster.answers import Answer
from raq.cluster.driver import Driver
from raq.cluster.events import Event
from raq.cluster.nodes import Node
from raq.cluster.session import cluster
from raq.environment import commit, environment
from raq.experiment.execution import Resources
from raq.experiment.schema import Experiment
from raq.plan.kinds import Pool
from raq.plan.stages import Stage
from raq.plan.stale import stale_stages
from raq.store.files import digest, now, write_json
from raq.store.local import Store

ROOT = Path(__file__).parents[2]
NODES = [Node(8, 0, number < 10, f"node-{number}") for number in range(50)]
KINDS: tuple[tuple[str, Pool, int], ...] = (
    ("ptq", "quantize", 1),
    ("lower", "quantize", 2),
    ("evaluate", "quantize", 1),
)  # kind, pool, CPUs
RESULTS: dict[str, dict[str, Any]] = {
    "lower": {"target": "cpu", "size_bytes": 13_260_000, "weight_bytes": 11_240_000, "int8_mac_share": 1.0},
    "evaluate": {"top1": 0.5, "correct": 1, "test_images": 2},
}  # what a record of that kind must have


@ray.remote(num_cpus=0, max_concurrency=500)
class Simulated:
    """Answers for all stage actors."""

    def __init__(self, queue: Any) -> None:
        self.queue, self.rng = queue, random.Random(0)

    async def run(self, call: Any, log: str, attempt: int) -> Answer:
        """A stage that takes some milliseconds and leaves a file."""
        self.queue.put.remote(Event(call.name, attempt, node="node-0"))
        await asyncio.sleep(self.rng.uniform(0.01, 0.1))
        Path(call.folder).mkdir(parents=True, exist_ok=True)
        (Path(call.folder) / "file").write_text(call.name)
        history = [{"epoch": n, "loss": 1 / (n + 1)} for n in range(10)]
        return Answer(
            id=uuid.uuid4().hex, results=RESULTS.get(call.kind, {}) | {"history": history}, files={}, digests=None,
            environment=environment(), cpus=call.cpus, workers=1, node=None, started_at=now(), duration_s=0.05,
        )  # fmt: skip


class Handle:
    """What the driver takes for an actor of its own."""

    def __init__(self, shared: Any) -> None:
        self.run = shared.run


def stages(candidates: int) -> list[Stage]:
    """A training, three stages a candidate, each after the one before."""
    plan = [Stage("train", "train", "train", {}, {}, digest("train"), Resources(cpus=8))]
    for number in range(candidates):
        before = "train"
        for kind, pool, cpus in KINDS:
            name = f"{kind}/{number}"
            plan.append(Stage(name, kind, pool, {}, {"before": before}, digest(name), Resources(cpus=cpus)))
            before = name
    return plan


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def simulate(candidates: int) -> dict[str, Any]:
    shared: list[Any] = []

    def start(queue: Any, *ignored: Any) -> Handle:
        if not shared:
            shared.append(Simulated.remote(queue))  # type: ignore[attr-defined]
        return Handle(shared[0])

    setattr(actors, "start_actor", start)  # noqa: B010  one that answers for all
    kill = ray.kill
    ray.kill = lambda actor, **options: None if isinstance(actor, Handle) else kill(actor, **options)
    plan = stages(candidates)
    with tempfile.TemporaryDirectory(prefix="raq-scale-") as scratch, cluster(None, Path(scratch)):
        store = Store(Path(scratch) / "results")
        run = store.new_run("scale")
        (run / "logs").mkdir()
        heard: list[str] = []
        driver = Driver(
            Experiment(name="scale"), plan, store, run, NODES, lambda name, event: heard.append(name), scratch
        )
        stale = stale_stages(plan, store, False)
        before, cpu, wall = resident_mb(), time.process_time(), time.monotonic()
        driver.run(stale)
        cpu, wall, after = time.process_time() - cpu, time.monotonic() - wall, resident_mb()
        listing = time.monotonic()
        assert stale_stages(plan, store, False) == {}
        listing = time.monotonic() - listing
    found = {
        "candidates": candidates,
        "stages": len(plan),
        "wall_s": round(wall, 2),
        "driver_cpu_ms_a_candidate": round(1000 * cpu / candidates, 2),
        "driver_memory_growth_mb": round(after - before, 1),
        "planning_again_ms_a_candidate": round(1000 * listing / candidates, 2),
        "events": len(heard),
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=1000)
    found = simulate(parser.parse_args().candidates)
    path = ROOT / "results" / "reference" / "scale.json"
    write_json(path, {**found, "environment": environment(), "measured_at": now(), "commit": commit()})


if __name__ == "__main__":
    main()
