"""What Ray costs training: images/s of the same loop bare, in a stage actor, and in Ray Train; time to the first step.

    uv run python tests/benchmarks/training_overhead.py [--rounds 5]

Run it on an otherwise idle machine. Contenders take turns, each in a process of its own; the record goes to
results/reference/training_overhead.json.
"""

import argparse
import json
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raq.cluster.resources import ActorKind
from raq.environment import environment
from raq.plan.prepare import prepare
from raq.plan.stages import Stage
from raq.stages.call import Call
from raq.store.files import now, write_json

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "quickstart.yaml"
SETTINGS = ["model.name=resnet18-cifar", "data.train_limit=700", "train.epochs=3", "train.progressive=[]"]
BARE = """
import json, pickle, sys
from raq.stages.dispatch import run_stage
print(json.dumps(run_stage(pickle.load(sys.stdin.buffer), lambda metrics: None)["history"]))
"""
BARE_RANK = """
import json, pickle, sys
from pathlib import Path
import torch, torch.distributed as dist
from raq.model.checkpoints import LocalContext
from raq.stages.train import train_in

call = pickle.load(sys.stdin.buffer)
context = LocalContext(Path(call.folder) / f"rank{sys.argv[1]}")
context.rank, context.world_size = int(sys.argv[1]), call.workers
torch.set_num_threads(call.cpus)
dist.init_process_group("gloo", f"file://{call.folder}/store", rank=context.rank, world_size=call.workers)
print(json.dumps(train_in(call, context).history))
"""


def call_of(stage: Stage, cpus: int, workers: int) -> Call:
    folder = tempfile.mkdtemp(prefix="raq-overhead-")
    return Call(
        name=stage.name,
        kind=stage.kind,
        settings=stage.settings,
        inputs={},
        folder=folder,
        cpus=cpus // workers,
        workers=workers,
    )


def speed(history: list[dict[str, Any]]) -> float:
    """Images/s after the first epoch, which pays for warming up."""
    return float(statistics.mean(row["images_per_s"] for row in history[1:]))


def bare(call: Call) -> float:
    done = subprocess.run([sys.executable, "-c", BARE], input=pickle.dumps(call), capture_output=True, check=True)
    return speed(json.loads(done.stdout.splitlines()[-1]))


def bare_ranks(call: Call) -> float:
    """The same number of plain processes with gloo, as torchrun would start them."""
    ranks = [
        subprocess.Popen([sys.executable, "-c", BARE_RANK, str(r)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for r in range(call.workers)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write(pickle.dumps(call))
        rank.stdin.close()
    outputs = [rank.stdout.read() for rank in ranks if rank.stdout is not None]
    assert all(rank.wait() == 0 for rank in ranks)
    return speed(json.loads(outputs[0].splitlines()[-1]))


def in_an_actor(call: Call) -> float:
    import ray

    from raq.cluster.actors import start_actor
    from raq.cluster.events import start_event_queue
    from raq.cluster.resources import Demand

    actor = start_actor(start_event_queue(), ActorKind(Demand(call.cpus, 0, 1)))
    answer = ray.get(actor.run.remote(call, f"{call.folder}.log", 1), timeout=600)
    ray.kill(actor)
    return speed(answer.results["history"])


def in_ray_train(call: Call) -> float:
    from raq.cluster.events import EventSender, start_event_queue
    from raq.cluster.ray_train import distributed_stage

    return speed(distributed_stage(call, EventSender(start_event_queue(), call.name))["history"])


CONTENDERS: dict[str, tuple[Callable[[Call], float], int, str | None]] = {
    "bare": (bare, 1, None),
    "actor": (in_an_actor, 1, "bare"),
    "ray train": (in_ray_train, 1, "bare"),
    "two bare processes": (bare_ranks, 2, None),
    "ray train, two workers": (in_ray_train, 2, "two bare processes"),
}


def first_step_s(*overrides: str) -> float:
    """Seconds from starting `raq run` to the line that says the first training step is done."""
    arguments = [part for override in overrides for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-c", "from raq.cli.main import main; main()", "run", str(EXPERIMENT), *arguments]
        process = subprocess.Popen([*command, "--results", folder], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch 1" in line:
                break
        took = time.perf_counter() - started
        process.terminate()
        process.communicate(timeout=120)
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    rounds, starts = options.rounds, range(options.starts)
    from raq.cluster.nodes import local_node
    from raq.cluster.session import cluster

    first: dict[str, list[float]] = {
        "one worker (actor)": [first_step_s() for _ in starts],
        "two workers (TorchTrainer)": [first_step_s("train.workers=2") for _ in starts],
    }
    stage = prepare(EXPERIMENT, SETTINGS).plan[0]
    cpus = local_node().cpus
    speeds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as logs, cluster(None, Path(logs)):
        for number in range(rounds):
            for name in CONTENDERS if number % 2 == 0 else reversed(CONTENDERS):
                measure, workers, _ = CONTENDERS[name]
                speeds[name].append(measure(call_of(stage, cpus, workers)))
                print(f"round {number + 1}, {name}: {speeds[name][-1]:.1f} images/s", flush=True)
    ratios = {
        name: statistics.median(a / b for a, b in zip(speeds[name], speeds[baseline], strict=True))
        for name, (_, _, baseline) in CONTENDERS.items()
        if baseline
    }
    record = {
        "measured_at": now(), "environment": environment(), "settings": SETTINGS, "images_per_s": speeds,
        "ratio_to_bare": ratios, "first_step_s": first,
    }  # fmt: skip
    write_json(ROOT / "results" / "reference" / "training_overhead.json", record)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f} of the images/s of {CONTENDERS[name][2]} (median of {rounds} rounds)")
    for name, seconds in first.items():
        print(f"{name}: {', '.join(f'{s:.1f}' for s in seconds)} s from `raq run` to the first training step")


if __name__ == "__main__":
    main()
