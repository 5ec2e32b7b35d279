"""Do sweeps hold? Many trials, and kills at any moment.

    uv run python tests/benchmarks/sweeps.py [--only trivial,kills] [--trials 200] [--kills 10]

trivial: trials that cost nothing through the search's whole path: seconds a trial, and what memory and processes do.
kills: a search for a training on the digits, its driver's process killed with SIGKILL at random moments and started
again: is the table the one of the search that nothing disturbed? Records go to results/reference/sweeps.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raq.experiment.training import Qat
from raq.store.settings import QatSearch

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "sweeps"
SEARCH = """
name: kills
data: {name: digits, validation_fraction: 0.2}
model: {name: resnet20-cifar}
train: {epochs: 2, augment: false, progressive: []}
qat: {epochs: 3, augment: false, batch_size: 64}
sweep:
  qat: {lr: {loguniform: [1.0e-5, 1.0e-1]}, weight_decay: [0.0, 0.001], freeze_bn_after: {uniform: [0.0, 3.0]}}
  trials: 12
"""
STAGES = ("train", "sweep/qat")


def sweep_here(folder: Path) -> None:
    """Train and search in this folder, as `raq run` does; what is finished is not done again."""
    from raq.cluster.driver import Driver
    from raq.cluster.session import cluster
    from raq.plan.prepare import prepare
    from raq.store.local import Store

    os.chdir(folder)
    prepared = prepare(folder / "kills.yaml", [])
    store = Store(folder / "results")
    plan = [stage for stage in prepared.plan if stage.name in STAGES]
    stale = {stage.name: "asked" for stage in plan if store.find(stage.kind, stage.fingerprint) is None}
    with store.locked():
        run = store.new_run("kills")
        (run / "logs").mkdir()

        def listen(stage: str, event: dict[str, Any]) -> None:
            if event.get("state") != "running" or "text" in event:
                print(stage, event.get("state"), event.get("text", ""), flush=True)

        with cluster(None, run / "logs") as nodes:
            Driver(prepared.experiment, plan, store, run, nodes, listen, str(folder)).run(stale)
    record = store.find(plan[-1].kind, plan[-1].fingerprint)
    assert record is not None
    results = dict(record["results"])
    table = (store.stage_folder(plan[-1].kind, plan[-1].fingerprint) / "trials.csv").read_text()
    (folder / "found.json").write_text(json.dumps({"results": results, "table": table}))


def searched(folder: Path, kill_after_s: float | None) -> tuple[float, bool]:
    """Search in a process of its own: its seconds, and whether it was killed before its end."""
    command = [sys.executable, str(Path(__file__)), "--here", str(folder)]
    started = time.monotonic()
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = process.wait(timeout=kill_after_s or 1200)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return time.monotonic() - started, True
    if code:
        raise SystemExit(f"the search failed: see {folder / 'log'}")
    return time.monotonic() - started, False


def fresh(parent: Path, name: str, trained: Path | None) -> Path:
    """A folder with the experiment, and the training that another one has done."""
    folder = parent / name
    folder.mkdir()
    (folder / "kills.yaml").write_text(SEARCH)
    if trained is not None:
        stages = folder / "results" / "stages"
        stages.mkdir(parents=True)
        for stage in (trained / "results" / "stages").glob("train-*"):
            subprocess.run(["cp", "-r", str(stage), str(stages)], check=True)
    return folder


def kills(count: int) -> dict[str, Any]:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="raq-kills-") as scratch:
        parent = Path(scratch)
        undisturbed = fresh(parent, "undisturbed", None)
        searched(undisturbed, None)
        whole = fresh(parent, "whole", undisturbed)
        lasts_s, _ = searched(whole, None)
        expected = json.loads((whole / "found.json").read_text())
        assert expected == json.loads((undisturbed / "found.json").read_text()), "two undisturbed ones differ"
        print(f"undisturbed: {lasts_s:.0f} s, {len(expected['results']['trials'])} trials", flush=True)
        rows = []
        for number in range(count):
            folder = fresh(parent, f"killed-{number}", whole)
            _, killed = searched(folder, after := rng.uniform(0.05, 0.95) * lasts_s)
            again_s, _ = searched(folder, None) if killed else (0.0, False)
            same = json.loads((folder / "found.json").read_text()) == expected
            row = {"killed_after_s": round(after, 1), "killed": killed, "again_s": round(again_s, 1), "identical": same}
            print(row, flush=True)
            rows.append(row)
        stopped = [t["number"] for t in expected["results"]["trials"] if t["state"] == "stopped"]
        return {"undisturbed_s": round(lasts_s, 1), "stopped_early": stopped, "kills": rows}


def free_trial(config: dict[str, Any]) -> None:
    from ray import tune

    tune.report({"epoch": 0, "validation": config["lr"]})


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processes_below(process: int) -> int:
    """Processes of this process's tree."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    tree, grown = {process}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in tree and child not in tree}
        tree |= more
        grown = bool(more)
    return len(tree) - 1


def trivial(count: int) -> dict[str, Any]:
    from ray import tune

    from raq.cluster.events import EventSender
    from raq.cluster.ray_tune_qat import tune_search
    from raq.cluster.session import cluster
    from raq.stages.call import Call
    from raq.sweep.qat import Search

    seen: list[tuple[float, int, int]] = []  # seconds, resident bytes of this process, processes below it

    class EventQueue:
        """Notes what there is whenever a trial has ended."""

        def __init__(self) -> None:
            self.send = self

        def remote(self, event: dict[str, Any]) -> None:
            seen.append((time.monotonic(), resident_bytes(os.getpid()), processes_below(os.getpid())))

    qat = {"lr": 0.5, "epochs": 1, "workers": 1}
    sweep = {"space": {"lr": {"uniform": [0.0, 1.0]}}, "search": "random", "scheduler": "asha", "trials": count}
    with tempfile.TemporaryDirectory(prefix="raq-trivial-") as scratch, cluster(None, Path(scratch)) as nodes:
        places = sum(node.cpus for node in nodes)
        call = Call(
            name="sweep/qat", kind="qat_sweep", settings={"qat": qat}, inputs={}, folder=scratch, cpus=1, workers=places
        )
        search = Search(QatSearch(**sweep), Qat.model_validate(qat), 0)
        started = time.monotonic()
        tune_search(
            call, EventSender(EventQueue(), "sweep/qat"), search, tune.with_resources(free_trial, {"cpu": 1}), places
        )
        lasts_s = time.monotonic() - started
    early, late = seen[count // 10 : count // 5], seen[-count // 10 :]
    found = {
        "trials": len(search.configs),
        "places": places,
        "seconds": round(lasts_s, 1),
        "seconds_a_trial": round(lasts_s / count, 3),
        "seconds_a_trial_steady": round((seen[-1][0] - seen[count // 10][0]) / (len(seen) - 1 - count // 10), 3),
        "resident_mb_early": round(sum(row[1] for row in early) / len(early) / 1e6, 1),
        "resident_mb_late": round(sum(row[1] for row in late) / len(late) / 1e6, 1),
        "processes_early": max(row[2] for row in early),
        "processes_late": max(row[2] for row in late),
    }
    print(found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="trivial,kills")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here is not None:
        sweep_here(arguments.here)
        return
    from raq.environment import commit, environment
    from raq.store.files import now, read_json, write_json

    path = REFERENCE / "sweeps.json"
    found = read_json(path) if path.is_file() else {}
    for name in arguments.only.split(","):
        did = {"trivial": lambda: trivial(arguments.trials), "kills": lambda: kills(arguments.kills)}[name]()
        found[name] = {**did, "measured_at": now(), "commit": commit()}
        found["environment"] = environment()
        REFERENCE.mkdir(parents=True, exist_ok=True)
        write_json(path, found)


if __name__ == "__main__":
    main()
