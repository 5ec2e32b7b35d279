"""Nine kinds of fault, injected into an experiment of about a minute on a cluster of real nodes, at random moments.

    uv run python tests/benchmarks/faults.py [--points 5] [--only worker,node,...] [--work FOLDER]

worker: a process at work is killed. node: a node is gone, and another one comes. driver: the job's process is killed.
head: the head is gone with all nodes, and all come back. preemption: a notice, then the node is gone, and another one
comes. storage: the storage (S3) is silent for 30 s. disk: the disk of the results is full, then has room again.
straggler: a node gets a fifth of its time for 30 s. hang: a process at work stops for ever. Nodes share the folder of
the results and no cache; with results at S3, nothing. What is hit is at work: a node that is not would not be missed.

Every run is submitted. At its end: is it complete, are its records those of an undisturbed run (but for what two
undisturbed runs have different too), are the stages that were done before the fault still the same executions, is a
process of a stage or a placement group left? Every fault comes after at least one stage has finished, so that there is
something to lose. One that met nothing, as the run had just ended, is injected again at another moment. Finished points
are kept in the work folder: it goes on where it was interrupted, with those of the same code. The table goes to
results/reference/faults.json. A full disk needs the right to mount one.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from ray_nodes import Head, job_process, ray_cluster, wait_for_nodes  # noqa: E402
from s3_server import Line, s3_server  # noqa: E402

from raq.environment import commit, environment  # noqa: E402
from raq.errors import UserError  # noqa: E402
from raq.signals import stop_on_sigterm  # noqa: E402
from raq.store.files import now, write_json  # noqa: E402
from raq.store.local import read_run  # noqa: E402
from raq.store.opening import open_store  # noqa: E402

MODULE = '''
"""A small network for the digits."""
from torch import nn


def model(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, num_classes),
    )
'''
EXPERIMENT = """
name: faults
data: {name: digits}
model: {name: "faults_user:model"}
train: {epochs: 10, lr: 0.05, augment: false, progressive: [], batch_size: 64, workers: 2}
ptq: {calibration: {size: 64}}
qat: null
bench: {batch_sizes: [1], rounds: 6, precision: null, round_ms: 5, warmup: 1}
resources:
  train: {cpus: 1, timeout_s: 100}
  quantize: {cpus: 1, timeout_s: 80}
  bench: {cpus: 1, timeout_s: 80}
"""
WORKER = ("--num-cpus=1", '--resources={"bench": 1}')
COUNT = 2
AT_WORK = (b"ray::StageActor.run", b"ray::RayTrainWorker", b"ray::_RayTrainWorker")
OURS = (
    b"ray::StageActor",
    b"ray::EventQueue",
    b"ray::RayTrainWorker",
    b"ray::_RayTrainWorker",
    b"ray::TrainController",
)
RUN_TIMEOUT_S, LEFT_TIMEOUT_S = 420.0, 30.0
WAIT_S = 60.0  # for nodes, where some come and go
OUTAGE_S, NOTICE_S, SLOW_S, REPLACED_S = 30.0, 10.0, 30.0, 5.0
MAX_MISSES = 4
VISIBLE = ("retry", "again", "lost", "taken away", "waiting", "raq: ")
Found = dict[str, Any]


@dataclass
class Setting:
    """The cluster, and where the runs' results are."""

    cluster: Head
    folder: Path
    alive: list[int]  # the workers, by number
    address: str
    line: Line

    def add_worker(self) -> None:
        """A further node, with its number as a label."""
        number = len(self.cluster.workers)
        self.cluster.start_worker((*WORKER, f"--labels=number={number}"))
        self.alive.append(number)

    def processes(self, titles: tuple[bytes, ...], node: int | None = None) -> list[int]:
        """The processes of this cluster with such titles, of one node or all."""
        mark = f"/tmp/raq-nodes-{os.getpid()}" + ("" if node is None else f"/worker-{node}/")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                titled = (process / "cmdline").read_bytes().startswith(titles)
                if titled and mark.encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found


@dataclass
class Run:
    """One submitted run: its process, what it has said, where its results are."""

    process: "subprocess.Popen[str]"
    results: str
    said: list[str]

    def ended(self) -> bool:
        return self.process.poll() is not None


def submitted(setting: Setting, results: str, *more: str) -> Run:
    command = [sys.executable, "-m", "raq", "submit", "faults.yaml", "--address", setting.cluster.dashboard]
    command += ["--wait", f"{WAIT_S:.0f}"]
    process = subprocess.Popen(
        [*command, "--results", results, *more],
        cwd=setting.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )
    run = Run(process, results, [])

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            run.said.append(f"{time.monotonic():.1f} {line.rstrip()}")

    threading.Thread(target=read, daemon=True).start()
    return run


def soon(setting: Setting, random_of: random.Random, run: Run, titles: tuple[bytes, ...] = AT_WORK) -> int | None:
    """A process at work, as soon as there is one; None if the run ends before."""
    while not run.ended():
        if found := setting.processes(titles):
            return random_of.choice(sorted(found))
        time.sleep(0.2)
    return None


def title_of(process: int) -> str:
    with suppress(OSError):
        return (Path("/proc") / str(process) / "cmdline").read_bytes().split(b"\0")[0].decode()
    return "?"


def signalled(setting: Setting, chance: random.Random, run: Run, number: signal.Signals) -> str | None:
    """Send this signal to a process at work."""
    process = soon(setting, chance, run)
    if process is None:
        return None
    title = title_of(process)
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return None
    return title


def worker(setting: Setting, chance: random.Random, run: Run) -> str | None:
    return signalled(setting, chance, run, signal.SIGKILL)


def node_at_work(setting: Setting, chance: random.Random, run: Run) -> int | None:
    """A node with a process at work, as soon as there is one; None if the run ends before."""
    while not run.ended():
        if found := [number for number in setting.alive if setting.processes(AT_WORK, number)]:
            return chance.choice(found)
        time.sleep(0.2)
    return None


def node(setting: Setting, chance: random.Random, run: Run) -> str | None:
    lost = node_at_work(setting, chance, run)
    if lost is None:
        return None
    setting.alive.remove(lost)
    setting.cluster.lose(lost)
    time.sleep(REPLACED_S)
    setting.add_worker()
    return f"worker-{lost}"


def driver(setting: Setting, chance: random.Random, run: Run) -> str | None:
    process = job_process(run.results)
    if process is None:
        return None
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return "raq run"


def head(setting: Setting, chance: random.Random, run: Run) -> str:
    setting.cluster.lose_head()
    for number in setting.alive:
        setting.cluster.lose(number)
    setting.alive.clear()
    time.sleep(REPLACED_S)
    setting.cluster.start_head()
    for _ in range(COUNT):
        setting.add_worker()
    return "head and all nodes"


def preemption(setting: Setting, chance: random.Random, run: Run) -> str | None:
    lost = node_at_work(setting, chance, run)
    if lost is None:
        return None
    setting.alive.remove(lost)
    nodes = setting.cluster.ask("/api/v0/nodes?detail=1")["data"]["result"]["result"]
    (identity,) = [n["node_id"] for n in nodes if n["labels"].get("number") == str(lost)]
    notice = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", setting.cluster.address,
              "--node-id", identity, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
              "--deadline-remaining-seconds", f"{NOTICE_S:.0f}"]  # fmt: skip
    subprocess.run(notice, check=True, capture_output=True)
    reported = time.monotonic()
    setting.add_worker()
    time.sleep(max(0.0, NOTICE_S - (time.monotonic() - reported)))
    setting.cluster.lose(lost)
    return f"worker-{lost}"


def storage(setting: Setting, chance: random.Random, run: Run) -> str:
    setting.line.hold()
    time.sleep(OUTAGE_S)
    setting.line.mend()
    return "S3"


def disk(setting: Setting, chance: random.Random, run: Run) -> str:
    """Full until the run has ended, or until it is seen to end well nevertheless."""
    filler = Path(run.results).parent / "filler"
    free = os.statvfs(filler.parent).f_bavail * os.statvfs(filler.parent).f_frsize
    try:
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, free - 50_000_000)
            file.seek(0, os.SEEK_END)
            while True:
                file.write(b"0" * 1_000_000)
        began = time.monotonic()
        while not run.ended() and time.monotonic() - began < RUN_TIMEOUT_S:
            time.sleep(0.2)
    finally:
        filler.unlink()
    return f"full; the run ended with {run.process.poll()} after {time.monotonic() - began:.0f} s"


def straggler(setting: Setting, chance: random.Random, run: Run) -> str | None:
    slow = node_at_work(setting, chance, run)
    if slow is None:
        return None
    until = time.monotonic() + SLOW_S
    while time.monotonic() < until:
        os.killpg(setting.cluster.workers[slow].pid, signal.SIGSTOP)
        time.sleep(0.4)
        os.killpg(setting.cluster.workers[slow].pid, signal.SIGCONT)
        time.sleep(0.1)
    return f"worker-{slow}"


def hang(setting: Setting, chance: random.Random, run: Run) -> str | None:
    return signalled(setting, chance, run, signal.SIGSTOP)


FAULTS: dict[str, Callable[[Setting, random.Random, Run], str | None]] = {
    "worker": worker, "node": node, "driver": driver, "head": head, "preemption": preemption, "storage": storage,
    "disk": disk, "straggler": straggler, "hang": hang,
}  # fmt: skip


def records_of(results: str) -> dict[str, Found]:
    """The records of the newest run, by stage; only those that are there."""
    store = open_store(results)
    if not store.run_folders():
        return {}
    run = read_run(store.find_run("latest"))
    found = {name: store.find(stage["kind"], stage["fingerprint"]) for name, stage in run["stages"].items()}
    return {name: record for name, record in found.items() if record is not None}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All plain values of a record, by their paths."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}/{key}")
    elif isinstance(value, list):
        yield f"{path}#", len(value)
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{path}/{number}")
    else:
        yield path, value


def flat(records: dict[str, Found]) -> Found:
    wanted = ("kind", "fingerprint", "settings", "inputs", "results", "files")
    return dict(leaves({name: {key: record[key] for key in wanted} for name, record in records.items()}))


def is_measured(path: str) -> bool:
    """Whether a value is a measured time or made of one, or resident memory: no two executions have the same."""
    of_bench = path.startswith("/bench/") and path.split("/")[3].rstrip("#") in ("results", "files")
    return of_bench or path.endswith(("_s", "_ms", "per_s", "/resident_bytes"))


def is_place(path: str) -> bool:
    """Whether a value names what is new at each execution: the folder of a stage's files."""
    return path.endswith("/files/place")


def differences(expected: Found, found: Found, ignored: set[str]) -> list[str]:
    return sorted(
        path
        for path in {*expected, *found}
        if path not in ignored
        and not is_measured(path)
        and not is_place(path)
        and expected.get(path, "missing") != found.get(path, "missing")
    )


def left_over(setting: Setting, results: str) -> Found:
    """The processes of stages and the placement groups that stay; those that are about to go are waited for."""
    until = time.monotonic() + LEFT_TIMEOUT_S
    while True:
        processes = [title_of(process) for process in setting.processes(OURS)]
        processes += ["raq run"] if job_process(results) is not None else []
        groups = ["not known: the dashboard does not answer"]
        with suppress(OSError, KeyError):
            answer = setting.cluster.ask("/api/v0/placement_groups?detail=1")["data"]["result"]["result"]
            groups = [group["placement_group_id"] for group in answer if group["state"] != "REMOVED"]
        if not (processes or groups) or time.monotonic() > until:
            return {"processes": processes, "placement_groups": groups}
        time.sleep(1)


@dataclass(frozen=True)
class Moments:
    """When things happen in an undisturbed run, in seconds: its first stage is done, and how much is left then."""

    first_s: float
    left_s: float

    def after(self, first_s: float, share: float) -> float:
        """Seconds from the start to this share of what is left, in a run whose first stage was done after `first_s`."""
        return first_s + share * self.left_s * max(1.0, first_s / self.first_s)


def one_run(
    setting: Setting,
    name: str | None,
    number: int,
    chance: random.Random,
    share: float = 0.0,
    usual: Moments | None = None,
) -> Found:
    """A run, with this fault at a share of the time after its first stage; what came of it, its records among it."""
    where = f"{name}-{number}-{time.time():.0f}"
    with ExitStack() as stack:
        if name == "disk":
            stack.enter_context(small_disk(setting.folder.parent / "disk"))
            results = str(setting.folder.parent / "disk" / "results")
        elif name == "storage":
            address, _, options = setting.address.partition("?")
            results = f"{address}/{where}?{options}"
        else:
            results = str(setting.folder.parent / where)
        began = time.monotonic()
        run = submitted(setting, results, *(("--set", "resources.train.timeout_s=60") if name == "hang" else ()))
        stack.callback(run.process.kill)  # where this is interrupted
        hit = None
        finished_before = first_finished(run)
        first_s = time.monotonic() - began
        after_s = 0.0 if usual is None else usual.after(first_s, share)
        if name is not None:
            while time.monotonic() - began < after_s and not run.ended():
                time.sleep(0.1)
            finished_before = finished(results) or finished_before
            injected = time.monotonic()
            hit = None if run.ended() or not finished_before else FAULTS[name](setting, chance, run)
        ended_with = waited_for(run)
        again = None
        if name == "disk" and ended_with != 0:
            again = submitted(setting, results)
            again_code = waited_for(again)
        duration = time.monotonic() - began
        said = [*run.said, *(again.said if again else [])]
        reported = [line.partition(" ")[2].replace(str(setting.folder.parent), "...") for line in said]
        records = records_of(results)
        runs = open_store(results).run_folders()
        complete = bool(runs) and read_run(runs[-1])["complete"]
        lost = [stage for stage, identity in finished_before.items() if records.get(stage, {}).get("id") != identity]
        if not results.startswith("s3"):
            shutil.rmtree(results, ignore_errors=True)
    found = {
        "fault": name, "number": number, "after_s": round(after_s, 1), "hit": hit, "code": ended_with,
        "code_of_second": again_code if again else None, "duration_s": round(duration, 1),
        "error_after_s": round(ended_at(run) - injected, 1) if name and ended_with != 0 else None,
        "first_stage_done_s": round(first_s, 1), "complete": complete, "stages_done_before": len(finished_before),
        "stages_lost": lost,
        "attempts": {stage: record["attempts"] for stage, record in records.items() if record["attempts"] > 1},
        "visible": [line for line in reported if any(word in line for word in VISIBLE) and "of top-1 lost" not in line],
        "left": left_over(setting, results), "commit": commit(), "source": source(),
    }  # fmt: skip
    return {**found, "records": flat(records), "said": said}


def finished(results: str) -> dict[str, str]:
    """The executions that have finished, by stage."""
    with suppress(UserError):  # no run is there yet, or its record just comes
        return {stage: record["id"] for stage, record in records_of(results).items()}
    return {}


def first_finished(run: Run) -> dict[str, str]:
    """The executions that have finished, as soon as there is one; empty if the run ends before."""
    while not run.ended():
        if found := finished(run.results):
            return found
        time.sleep(0.5)
    return {}


def waited_for(run: Run) -> int:
    try:
        code = run.process.wait(timeout=RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        run.process.kill()
        code = run.process.wait()
        job = job_process(run.results)
        if job is not None:  # else it goes on beside all that follow
            os.kill(job, signal.SIGTERM)
            time.sleep(LEFT_TIMEOUT_S)
    time.sleep(0.3)  # its last lines
    return code


def ended_at(run: Run) -> float:
    """When it said its last line."""
    return float(run.said[-1].split()[0]) if run.said else time.monotonic()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 6 GB, in a file: raq wants 5 of them free at the start."""
    folder.mkdir(exist_ok=True)
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(6 * 10**9)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        image.unlink()


def main() -> None:
    stop_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=5)
    parser.add_argument("--only", default=",".join(FAULTS))
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "faults")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept_before = {path.stem: json.loads(path.read_text()) for path in options.work.glob("*.json")}
    done = {name: found for name, found in kept_before.items() if found.get("source") == source()}
    wanted = [(name, number) for number in range(options.points) for name in options.only.split(",")]
    missing = [(name, number) for name, number in wanted if f"{name}-{number}" not in done]
    with tempfile.TemporaryDirectory(prefix="raq-faults-") as scratch, ExitStack() as stack:
        folder = Path(scratch) / "work"
        folder.mkdir()
        (folder / "faults_user.py").write_text(MODULE)
        (folder / "faults.yaml").write_text(EXPERIMENT)
        os.environ |= {"RAQ_CACHE": f"{scratch}/cache", "RAY_AUTH_MODE": "token"}
        os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        if missing or "None-0" not in done:
            address, line = stack.enter_context(s3_server(folder))
            workers = [(*WORKER, f"--labels=number={number}") for number in range(COUNT)]
            cluster = stack.enter_context(ray_cluster(folder, ["--num-cpus=0"], workers, caches=True))
            os.environ["RAY_AUTH_TOKEN"] = cluster.token
            setting = Setting(cluster, folder, list(range(COUNT)), address, line)
            for number in range(3):  # the first one fills caches
                if f"None-{number}" not in done:
                    done[f"None-{number}"] = kept(options.work, one_run(setting, None, number, random.Random(0)))
        usual = [done[f"None-{number}"] for number in (1, 2)]
        assert all(run["complete"] and run["code"] == 0 for run in usual), "the undisturbed runs are not complete"
        duration = statistics.median(run["duration_s"] for run in usual)
        first_s = max(run["first_stage_done_s"] for run in usual)
        moments = Moments(first_s, duration - 4 - first_s)
        for name, number in missing:
            chance = random.Random(f"{name} {number}")
            for misses in range(MAX_MISSES + 1):
                share = (number + chance.random()) / options.points
                found = {**one_run(setting, name, number, chance, share, moments), "misses": misses}
                if found["hit"] is not None:
                    done[f"{name}-{number}"] = kept(options.work, found)
                wait_for_nodes(cluster.dashboard, cluster.token, 1 + COUNT)
                if found["hit"] is not None:
                    break
    report(done, wanted, duration)


@cache
def source() -> str:
    """The digest of what is measured, and of what measures it."""
    files = [*sorted((ROOT / "raq").rglob("*.py")), Path(__file__), *sorted((ROOT / "tests").glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def kept(folder: Path, found: Found) -> Found:
    write_json(folder / f"{found['fault']}-{found['number']}.json", found)
    shown = {key: value for key, value in found.items() if key not in ("records", "said", "commit")}
    print(json.dumps(shown), flush=True)
    return found


def one_error(row: Found) -> bool:
    """Whether what could not be cured was reported once, soon after."""
    errors = [line for line in row["visible"] if line.startswith("raq: ")]
    return row["code"] != 0 and len(errors) == 1 and row["error_after_s"] < 60


def report(done: dict[str, Found], wanted: list[tuple[str, int]], duration: float) -> None:
    """Print the table, and write it to the reference."""
    first, second = done["None-1"]["records"], done["None-2"]["records"]
    ignored = set(differences(first, second, set()))
    rows = []
    for name, number in wanted:
        run = done.get(f"{name}-{number}")
        if run is not None:
            kept_keys = {key: value for key, value in run.items() if key not in ("records", "said")}
            rows.append({**kept_keys, "different": differences(first, run["records"], ignored)})
    table = {}
    for name in dict.fromkeys(name for name, _ in wanted):
        own = [row for row in rows if row["fault"] == name]
        table[name] = {
            "runs": len(own),
            "complete": sum(
                row["complete"] and (row["code"] if row["code_of_second"] is None else row["code_of_second"]) == 0
                for row in own
            ),
            "records_equal": sum(not row["different"] for row in own),
            "with_stages_done_before": sum(row["stages_done_before"] > 0 for row in own),
            "stages_at_stake": sum(row["stages_done_before"] for row in own),
            "nothing_lost": sum(not row["stages_lost"] for row in own),
            "nothing_left": sum(not any(row["left"].values()) for row in own),
            "ended_with_one_error_within_a_minute": sum(one_error(row) for row in own) if name == "disk" else None,
            "median_s": statistics.median(row["duration_s"] for row in own) if own else None,
            "longest_s": max((row["duration_s"] for row in own), default=None),
        }
    about = {
        "undisturbed_s": duration,
        "not_compared": sorted(ignored),
        "measured_at": now(),
        "environment": environment(),
    }
    write_json(ROOT / "results" / "reference" / "faults.json", {**about, "table": table, "runs": rows})
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
