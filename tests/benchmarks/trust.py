"""Can raq's latencies be trusted? The measurement, measured.

    uv run python tests/benchmarks/trust.py [--runs 100] [--only quiet,neighbour,spread,bias,simulated] [--work FOLDER]

quiet: an artifact against its twin, and against one that sleeps 3% longer, again and again on the idle machine: how
often is a difference found where there is none, and where there is one? neighbour: the sleepy one beside a process that
burns one core for random half seconds: does the interval hold the true ratio? spread: the quickstart's bench 20 times,
spread over two hours: do intervals hold what the other 19 runs come to? bias: contenders in one process against
processes of their own. simulated: coverage on made-up launches that drift, measured until the interval is narrow.

Run it on an idle machine; every finished run is kept in the work folder, so that it goes on where it was interrupted.
With --lock FILE, the file is locked while something is timed: other work can wait for it (flock FILE COMMAND).
Records go to results/reference/trust.
"""

import argparse
import fcntl
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from keep_reference import short
from scipy.stats import t as student
from trust_contenders import SHARE

from raq.bench.latency import measure
from raq.bench.launcher import ForkServer, fork_server
from raq.bench.messages import ContenderSettings
from raq.bench.noise import is_long
from raq.bench.ratio_statistics import launch_agreement, paired_ratio, relative_half_width
from raq.environment import available_cpus, commit, environment
from raq.experiment.inputs import image_input
from raq.experiment.load import load_experiment
from raq.experiment.measurement import Bench
from raq.report.ratios import SharedRounds, row_ratios, shared_rounds
from raq.signals import stop_on_sigterm
from raq.statistics.proportions import proportion_interval
from raq.store.files import now, read_json, write_json
from raq.store.local import Store, read_run

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "trust"
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
SHAPE, BATCH = (image_input((3, 32, 32)),), 32
RUNS_A_FORK_SERVER = 50  # runs whose contenders are forked from one process; starting it takes seconds
QUIET = Bench(batch_sizes=(BATCH,), precision=0.02, budget_s=30.0)
NEIGHBOUR = Bench(batch_sizes=(BATCH,), budget_s=20.0)
FAR_SHARE = 0.95  # of the rounds of a pair: so many, and its CPUs were far apart
SPREAD_RUNS, SPREAD_S = 20, 7200.0  # from the start of the first to the start of the last
BURNER = """
import random, sys, time
random.seed(int(sys.argv[1]))
while True:
    end = time.perf_counter() + random.uniform(0, 0.5)
    while time.perf_counter() < end:
        pass
    time.sleep(random.uniform(0, 1.0))
"""
Found = dict[str, Any]


def contender(name: str, function: str, weights: Path) -> ContenderSettings:
    model = f"trust_contenders:{function}"
    threads, folder = len(available_cpus()), str(Path(__file__).parent)
    return ContenderSettings(name, "eager", "cpu", str(weights), SHAPE, threads, model, 10, folder, fp32=name == "fp32")


def raw(found: Found) -> Found:
    """What is kept of one run in the work folder: all but the samples and the clocks."""
    noise = {key: value for key, value in found["noise"].items() if key != "clocks"}
    kept = {key: found[key] for key in ("stopped_by", "elapsed_s", "launches", "spent_s", "rows")}
    return {**kept, "noise": noise}


def summary(run: Found) -> Found:
    """What is kept of one run in the reference: its rows without the rounds, and what each pair of contenders comes to.

    Intervals are computed anew from the rounds, by the statistics as they are now.
    """
    if "rows" not in run or "round_number" not in run["rows"][0]:
        return run
    rows = run["rows"]
    for row in rows:
        baseline = next(
            r for r in rows
            if f"{r['candidate']}/{r['runtime']}" == row["baseline"] and r["batch_size"] == row["batch_size"]
        )  # fmt: skip
        row["speedup"], row["speedup_interval"] = paired_ratio(row_ratios(baseline, row))
    left_out = ("round_p50_ms", "round_launch", "round_disturbed", "round_number")
    short = [{key: value for key, value in row.items() if key not in left_out} for row in rows]
    return {**run, "rows": short, "pairs": pairs(rows)}


def pairs(rows: list[Any]) -> dict[str, Found]:
    """The speedup of each contender over each that stands before it, with its interval."""
    found = {}
    for one, other in itertools.combinations(rows, 2):
        if one["batch_size"] == other["batch_size"]:
            launches = row_ratios(one, other)
            ratio, interval = paired_ratio(launches)
            names = [f"{row['candidate']}/{row['runtime']}" for row in (other, one)]
            found[f"{names[0]} over {names[1]}, batch {one['batch_size']}"] = {
                "value": ratio, "interval": interval, "agreement": launch_agreement(launches),
                "rounds": asdict(rounds) if (rounds := shared_rounds(one, other)) else None,
            }  # fmt: skip
    return found


def quiet(own: ForkServer, weights: Path) -> Found:
    entrants = [contender("one", "plain", weights), contender("twin", "plain", weights)]
    return raw(measure([*entrants, contender("sleepy", "sleepy", weights)], QUIET, available_cpus(), started=own))


def neighbour(own: ForkServer, weights: Path, number: int) -> Found:
    burner = subprocess.Popen([sys.executable, "-c", BURNER, str(number)])
    try:
        entrants = [contender("one", "plain", weights), contender("sleepy", "sleepy", weights)]
        return raw(measure(entrants, NEIGHBOUR, available_cpus(), started=own))
    finally:
        burner.kill()
        burner.wait()


def quickstart_contenders(results: Path) -> tuple[list[ContenderSettings], Bench]:
    """The contenders of the newest run of the quickstart in this results folder, as its bench stage has them."""
    store = Store(results.resolve())
    run = read_run(store.find_run("latest"))
    stages = {name: store.stage_folder(s["kind"], s["fingerprint"]) for name, s in run["stages"].items()}
    threads = len(available_cpus())
    model = run["settings"]["model"]["name"]
    weights = str(stages["train"] / "weights.pt")
    found = [ContenderSettings("fp32", "eager", "cpu", weights, SHAPE, threads, model, 10, None, fp32=True)]
    for name in ("fp32", "ptq", "qat"):
        path = str(stages[f"lower/{name}"] / "artifact.pt2")
        found.append(
            ContenderSettings(name, "inductor", "cpu", path, SHAPE, threads, model, 10, None, fp32=name == "fp32")
        )
    return found, load_experiment(QUICKSTART).bench


def wait_for_turn(folder: Path, number: int) -> None:
    """Sleep until a run of the spread ones is due."""
    if number:
        first = datetime.fromisoformat(json.loads((folder / "spread.jsonl").read_text().splitlines()[0])["began"])
        due = first.timestamp() + number * SPREAD_S / (SPREAD_RUNS - 1)
        time.sleep(max(0.0, due - time.time()))


def spread(results: Path) -> Found:
    """The bench as a run does it, from a process of its own on."""
    contenders, protocol = quickstart_contenders(results)
    began = now()
    return {"began": began, **raw(measure(contenders, protocol, available_cpus()))}


def simulated(correlation: float, deviation: float, runs: int, seed: int = 0) -> Found:
    """Coverage of runs that end when the interval is narrow (2%), or after 40 launches; looked at from the twelfth on.

    A launch has two rounds, whose logarithms have heavy tails (Student's t with 3 degrees, scale 2%), and a shift of
    its own: an autoregressive process with this correlation from launch to launch and this standard deviation.
    """
    rng = np.random.default_rng(seed)
    held, narrow, held_narrow, widths = 0, 0, 0, []
    for _ in range(runs):
        shifts = [rng.normal(0, deviation)]
        while len(shifts) < 40:
            shifts.append(correlation * shifts[-1] + rng.normal(0, deviation * math.sqrt(1 - correlation**2)))
        launches = [list(np.exp(shift + 0.02 * rng.standard_t(3, 2))) for shift in shifts]
        for count in range(12, 41):
            _, interval = paired_ratio(launches[:count])
            assert interval is not None
            width = relative_half_width(interval)
            assert width is not None
            if width <= 0.02:
                narrow += 1
                break
        assert interval is not None and width is not None, "there are launches to look at"
        held += interval[0] <= 1 <= interval[1]
        held_narrow += interval[0] <= 1 <= interval[1] and width <= 0.02
        widths.append(width)
    reported = {"correlation": correlation, "deviation": deviation, "median half width": statistics.median(widths)}
    return {
        **reported,
        "coverage": share(held, runs),
        "of those within 2%": share(held_narrow, narrow) if narrow else None,
    }


SIMULATED = ((0.0, 0.0), (0.0, 0.02), (0.5, 0.02), (0.5, 0.03), (0.8, 0.02), (0.8, 0.03), (0.9, 0.02), (0.9, 0.03))


def in_one_process(contenders: list[ContenderSettings], batch: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds by round and contender, all of them loaded into this process and called in turns."""
    from dataclasses import asdict

    from raq.artifact.runtimes import RUNTIMES
    from raq.bench.contender import Contender
    from raq.bench.messages import Load

    def load(c: ContenderSettings) -> Load:
        runtime = RUNTIMES.get(c.runtime)
        how = (None, None) if runtime is None else (runtime.load, runtime.prepare)
        return Load(**asdict(c), cpus=available_cpus(), load=how[0], prepare=how[1])

    with torch.inference_mode():
        loaded = {c.name: Contender(load(c)) for c in contenders}
        for entrant in loaded.values():
            entrant.warm_up(batch, 5, 2.0)
        found: dict[str, list[float]] = {name: [] for name in loaded}
        for number in range(rounds):
            for name in loaded if number % 2 == 0 else reversed(loaded):
                found[name].append(statistics.median(loaded[name].round(batch, 3, 50.0)))
    return found


def bias(own: ForkServer, results: Path) -> Found:
    """Speedups over eager FP32 of the quickstart's artifacts, measured in three ways in one go."""
    contenders, _ = quickstart_contenders(results)
    found: Found = {}
    for batch in (1, 32):
        code = (
            "import sys, json; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import trust; "
            "c, _ = trust.quickstart_contenders(Path(sys.argv[2])); "
            f"print(json.dumps(trust.in_one_process(c, {batch}, 24)))"
        )
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(results)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        shared = json.loads(done.stdout.splitlines()[-1])
        one_by_one = measure(
            contenders, Bench(protocol="published", batch_sizes=(batch,)), available_cpus(), started=own
        )
        turns = measure(contenders, Bench(batch_sizes=(batch,), budget_s=90.0), available_cpus(), started=own)
        base = "fp32/eager"
        for row, published in zip(turns["rows"], one_by_one["rows"], strict=True):
            name = f"{row['candidate']}/{row['runtime']}"
            together = statistics.median(b / c for b, c in zip(shared[base], shared[name], strict=True))
            found[f"{name} at batch {batch}"] = {
                "interleaved": row["speedup"],
                "interval": row["speedup_interval"],
                "one process": together,
                "published": published["speedup"],
            }
    return found


def kept(
    folder: Path,
    name: str,
    runs: int,
    do: Callable[[int], Found],
    lock: Path | None = None,
    wait: Callable[[int], None] = lambda number: None,
) -> list[Found]:
    """The results of `runs` runs, those in the folder not done again; each holds the lock, if there is one."""
    file = folder / f"{name}.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()] if done(folder, name) else []
    for number in range(len(found), runs):
        wait(number)
        with lock.open("w") if lock else nullcontext() as held:
            if held:
                fcntl.flock(held, fcntl.LOCK_EX)
            found.append({**do(number), "at": now(), "commit": commit()})
        with file.open("a") as out:
            out.write(json.dumps(found[-1]) + "\n")
        print(f"{name} {number + 1} of {runs}: {words(found[-1])}", flush=True)
    return [summary(run) for run in found[:runs]]


def done(folder: Path, phase: str) -> int:
    """How many runs of a phase are kept."""
    file = folder / f"{phase}.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def count_of(phase: str, runs: int) -> int:
    """How many runs of a phase need the machine, where so many are asked for."""
    return {"spread": min(SPREAD_RUNS, runs), "bias": 1, "simulated": 0}.get(phase, runs)


def words(run: Found) -> str:
    if "rows" not in run:
        return json.dumps(run)
    rows = [
        f"{r['candidate']} {r['batch_size']}: {r['speedup']:.3f} {r['speedup_interval']} calm {r['calm']} "
        f"{r['disturbed_rounds']}/{r['rounds']}"
        for r in run["rows"][1:]
    ]
    return f"{run['elapsed_s']:.0f} s, {run['stopped_by']}, {run['launches']} launches; {'; '.join(rows)}"


def interval_of(run: Found, name: str) -> tuple[float, float]:
    """The interval of a speedup; one that holds everything, where the run had too few rounds for one."""
    low, high = next(r["speedup_interval"] for r in run["rows"] if r["candidate"] == name) or (0.0, math.inf)
    return low, high


def share(count: int, total: int) -> Found:
    low, high = proportion_interval(count, total)
    return {"count": count, "of": total, "interval": [low, high]}


def classify(found: dict[str, list[Found]]) -> Found:
    """The figures of the table."""
    truth = 1 / (1 + SHARE)
    table: Found = {"true_ratio": truth}
    if "quiet" in found:
        every = [(interval_of(run, "twin"), interval_of(run, "sleepy")) for run in found["quiet"]]
        table["quiet: without an interval"] = share(sum(not t[0] or not s[0] for t, s in every), len(every))
        twins = [t for t, s in every if t[0] and s[0]]
        sleepy = [s for t, s in every if t[0] and s[0]]
        table["A/A called different"] = share(sum(not low <= 1 <= high for low, high in twins), len(twins))
        table["3% slower called slower"] = share(sum(high < 1 for _, high in sleepy), len(sleepy))
        logs = np.log([next(r["speedup"] for r in run["rows"] if r["candidate"] == "twin") for run in found["quiet"]])
        half = float(student.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs)))
        mean = float(logs.mean())
        table["bias of twins, percent"] = {"mean": 100 * mean, "interval": [100 * (mean - half), 100 * (mean + half)]}
        table["quiet: ended by precision"] = share(
            sum(run["stopped_by"] == "precision" for run in found["quiet"]), len(found["quiet"])
        )
        table["quiet: seconds, mean"] = statistics.mean(run["elapsed_s"] for run in found["quiet"])
        table["quiet: interval holds the true ratio"] = share(sum(a <= truth <= b for a, b in sleepy), len(sleepy))
    if "neighbour" in found:
        pairs = [interval_of(run, "sleepy") for run in found["neighbour"]]
        known = [(a, b) for a, b in pairs if a]  # a run with too few launches says that it has no interval
        table["neighbour: interval holds the true ratio"] = share(sum(a <= truth <= b for a, b in known), len(known))
        table["neighbour: called slower"] = share(sum(b < 1 for _, b in pairs), len(pairs))
        widths = [math.sqrt(b / a) - 1 for a, b in known]
        table["neighbour: without an interval"] = share(sum(not a for a, _ in pairs), len(pairs))
        table["neighbour: median half width"] = statistics.median(widths)
    if "spread" in found:
        table["spread"] = left_one_out(found["spread"])
    if "simulated" in found:
        table["simulated coverage"] = found["simulated"]
    if "bias" in found:
        table["bias"] = {name: row for name, row in found["bias"][0].items() if name not in ("at", "commit")}
    return table


def left_one_out(runs: list[Found]) -> Found:
    """Of each speedup, how many runs have an interval that holds the mean of all other runs; how far runs are apart.

    The mean is of logarithms. like it: of the others whose two CPUs were as near, or as far from one another (`apart`),
    and how often that was so; a run of both, or alone in its state, is held against none. by precision: runs that
    reached the precision asked for; launches differ, drift: runs whose launches differ more than their rounds explain,
    or agree more the nearer in time (p below 0.01).
    """
    table: Found = {"runs": len(runs), "from": runs[0]["began"], "to": runs[-1]["began"]}
    near_us = min(run["noise"]["handover_us"]["near"] for run in runs)
    table["by precision"] = sum(run["stopped_by"] == "precision" for run in runs)
    for key in runs[0]["pairs"]:
        values = np.log([run["pairs"][key]["value"] for run in runs])
        intervals = [run["pairs"][key]["interval"] for run in runs]
        pooled = [math.exp(float(np.delete(values, n).mean())) for n in range(len(runs))]
        held = sum(i is not None and i[0] <= value <= i[1] for i, value in zip(intervals, pooled, strict=True))
        widths = [math.sqrt(i[1] / i[0]) - 1 for i in intervals if i is not None]
        states = [apart(run, key, near_us) for run in runs]
        alike = {
            n: [values[m] for m in range(len(runs)) if m != n and states[m] == state]
            for n, state in enumerate(states)
            if state != "both"
        }
        compared = {n: math.exp(statistics.mean(others)) for n, others in alike.items() if others}
        held_alike = sum(
            intervals[n] is not None and intervals[n][0] <= m <= intervals[n][1] for n, m in compared.items()
        )
        table[key] = {
            "holds the others' mean": share(held, len(runs)),
            "holds the mean of those like it": share(held_alike, len(compared)),
            "CPUs": {
                state: {"runs": states.count(state), "mean": math.exp(np.mean(values[[s == state for s in states]]))}
                for state in sorted(set(states))
            },
            "mean": math.exp(float(values.mean())),
            "least": math.exp(float(values.min())),
            "most": math.exp(float(values.max())),
            "median half width": statistics.median(widths) if widths else None,
            "within 2%": sum(width <= 0.02 for width in widths),
        }
    agreements = [pair["agreement"] for run in runs for pair in run["pairs"].values() if pair["agreement"]]
    known = [a["p"] for a in agreements if a["p"] is not None]
    table["speedups whose launches differ"] = share(sum(p < 0.01 for p in known), len(known))
    table["speedups that drift"] = share(sum(a["drift_p"] < 0.01 for a in agreements), len(agreements))
    return table


def apart(run: Found, pair: str, near_us: float) -> str:
    """Where the CPUs were in the rounds that a speedup is of: near, far apart or both; of runs without neighbours."""
    if is_long(run["noise"]["handover_us"]["near"], near_us):
        return "far"  # from start to end
    rounds = SharedRounds(**run["pairs"][pair]["rounds"])
    if rounds.doubt is None:
        return "near"
    return "far" if rounds.disturbed >= FAR_SHARE * rounds.shared else "both"


def kept_reference(name: str) -> Found:
    """A file of the reference as it is; empty without one."""
    return read_json(REFERENCE / name) if (REFERENCE / name).is_file() else {}


def main() -> None:
    stop_on_sigterm()  # so that a neighbour does not outlive it
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--only", default="quiet,neighbour,spread,bias,simulated")
    parser.add_argument("--work", type=Path, default=ROOT / "results" / "trust")
    parser.add_argument("--lock", type=Path)
    options = parser.parse_args()
    phases = options.only.split(",")
    options.work.mkdir(parents=True, exist_ok=True)
    results = options.work / "quickstart"
    command = [
        sys.executable,
        "-c",
        "from raq.cli.main import main; main()",
        "run",
        str(QUICKSTART),
        "--results",
        str(results),
    ]
    if not all(done(options.work, phase) >= count_of(phase, options.runs) for phase in phases):
        subprocess.run(command, check=True)
    contenders, _ = quickstart_contenders(results)
    os.environ["TRUST_PACKAGE"] = next(c.path for c in contenders if c.name == "ptq/inductor")
    weights = options.work / "anchor.pt"
    torch.save({"anchor": torch.zeros(1)}, weights)
    runs = options.runs
    found: dict[str, list[Found]] = {}
    functions = {
        "quiet": lambda own, number: quiet(own, weights),
        "neighbour": lambda own, number: neighbour(own, weights, number),
    }
    for name, function in functions.items():
        if name in phases:
            for until in range(RUNS_A_FORK_SERVER, runs + RUNS_A_FORK_SERVER, RUNS_A_FORK_SERVER):
                with fork_server() as own:
                    found[name] = kept(options.work, name, min(until, runs), partial(function, own), options.lock)
    if "spread" in phases:
        wanted = count_of("spread", runs)
        found["spread"] = kept(
            options.work,
            "spread",
            wanted,
            lambda n: spread(results),
            options.lock,
            partial(wait_for_turn, options.work),
        )
    if "bias" in phases:
        with fork_server() as own:
            found["bias"] = kept(options.work, "bias", 1, lambda n: bias(own, results), options.lock)
    if "simulated" in phases:
        found["simulated"] = [simulated(*drift, runs=10 * runs) for drift in SIMULATED]
    table = classify(found)
    REFERENCE.mkdir(parents=True, exist_ok=True)
    about, runs_kept = kept_reference("trust.json"), kept_reference("runs.json")
    protocols = {"quiet": QUIET.model_dump(mode="json"), "neighbour": NEIGHBOUR.model_dump(mode="json")}
    for phase in found:  # what was not measured this time stays as it was
        last = found[phase][-1]  # which may have been measured before this start
        where = {**environment(), "commit": last.get("commit", commit())}
        measured = {"at": last.get("at", now()), "environment": where, "protocol": protocols.get(phase)}
        about["measured"] = {**about.get("measured", {}), phase: measured}
    about["table"] = {**about.get("table", {}), **table}
    write_json(REFERENCE / "trust.json", about)
    write_json(REFERENCE / "runs.json", {**runs_kept, **short(found)})
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
