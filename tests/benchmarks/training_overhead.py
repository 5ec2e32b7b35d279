"""What Ray costs training: images/s of the same loop bare, in a stage actor, and in Ray Train; time to the first step.

    uv run python tests/benchmarks/training_overhead.py [--rounds 5]

Run it on an otherwise idle machine. Contenders take turns, each in a process of its own; the record goes to
results/reference/training_overhead.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raq.environment import environment
from raq.plan import Stage
from raq.records import now, write_json
from raq.run import prepare
from raq.stages import Call

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "quickstart.yaml"
SETTINGS = ["model.name=resnet18-cifar", "data.train_limit=700", "train.epochs=3", "train.progressive=[]"]
BARE = """
import json, pickle, sys
from raq.stages import run_stage
print(json.dumps(run_stage(pickle.load(sys.stdin.buffer), lambda metrics: None)["history"]))
"""


def call_of(stage: Stage, cpus: int) -> Call:
    folder = tempfile.mkdtemp(prefix="raq-overhead-")
    return Call(stage.name, stage.kind, stage.settings, {}, folder, None, None, None, cpus, 0, 1)


def speed(history: list[dict[str, Any]]) -> float:
    """Images/s after the first epoch, which pays for warming up."""
    return statistics.mean(row["images_per_s"] for row in history[1:])


def bare(call: Call) -> float:
    import pickle

    done = subprocess.run([sys.executable, "-c", BARE], input=pickle.dumps(call), capture_output=True, check=True)
    return speed(json.loads(done.stdout.splitlines()[-1]))


def in_an_actor(call: Call) -> float:
    import ray

    from raq.cluster.actors import start_actor, start_board

    actor = start_actor(start_board(), "train", call.cpus, 0, 1)
    answer = ray.get(actor.run.remote(call, f"{call.folder}.log"), timeout=600)
    ray.kill(actor)
    return speed(answer["results"]["history"])


def in_ray_train(call: Call) -> float:
    from raq.cluster.actors import start_board
    from raq.cluster.training import distributed_stage

    return speed(distributed_stage(call, start_board())["history"])


def first_step_s(*overrides: str) -> float:
    """Seconds from starting `raq run` to the line that says the first training step is done."""
    arguments = [part for override in overrides for part in ("--set", override)]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        command = [sys.executable, "-c", "from raq.cli import main; main()", "run", str(EXPERIMENT), *arguments]
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
    from raq.cluster.session import cluster, local_node

    first = {
        "one worker (actor)": [first_step_s() for _ in starts],
        "two workers (TorchTrainer)": [first_step_s("train.workers=2") for _ in starts],
    }
    stage = prepare(EXPERIMENT, SETTINGS).plan[0]
    cpus = local_node().cpus
    contenders = {"bare": bare, "actor": in_an_actor, "ray train": in_ray_train}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as logs, cluster(None, Path(logs)):
        for number in range(rounds):
            for name in contenders if number % 2 == 0 else reversed(contenders):
                speeds[name].append(contenders[name](call_of(stage, cpus)))
                print(f"round {number + 1}, {name}: {speeds[name][-1]:.1f} images/s", flush=True)
    ratios = {
        name: statistics.median(a / b for a, b in zip(speeds[name], speeds["bare"], strict=True))
        for name in contenders
        if name != "bare"
    }
    record = {
        "measured_at": now(), "environment": environment(), "settings": SETTINGS, "images_per_s": speeds,
        "ratio_to_bare": ratios, "first_step_s": first,
    }  # fmt: skip
    write_json(ROOT / "results" / "reference" / "training_overhead.json", record)
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.3f} of the bare loop's images/s (median of {rounds} rounds)")
    for name, seconds in first.items():
        print(f"{name}: {', '.join(f'{s:.1f}' for s in seconds)} s from `raq run` to the first training step")


if __name__ == "__main__":
    main()
