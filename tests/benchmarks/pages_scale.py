"""How long a page of 500 trials takes, and `raq runs` among 10,000 runs: each in a process of its own, start included.

    uv run python tests/benchmarks/pages_scale.py RESULTS

RESULTS: a results folder with a complete run. It is copied; the trials are those of the kept sweep, over and over with
other numbers. The record goes to results/reference/pages_scale.json.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from raq.environment import environment
from raq.store.files import now, read_json, write_json
from raq.store.local import Store, sealed

REFERENCE = Path(__file__).parents[2] / "results" / "reference"
TRIALS, RUNS = 500, 10_000


def timed(*arguments: str) -> float:
    """Seconds of a command, from its start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "raq", *arguments], check=True, capture_output=True)
    return time.perf_counter() - started


def with_trials(store: Store, folder: Path) -> None:
    """Give the run a finished sweep of TRIALS trials."""
    kept = read_json(REFERENCE / "qat-sweep" / "records.json")["sweep/qat"]
    chance = random.Random(0)
    results = dict(kept["results"])
    own = results["trials"]
    results["trials"] = [
        {**own[number % len(own)], "number": number, "top1": None if one is None else one + chance.uniform(-0.02, 0.02)}
        for number in range(TRIALS)
        for one in [own[number % len(own)].get("top1")]
    ]
    fingerprint = "a" * 64
    stage = store.stage_folder("qat_sweep", fingerprint)
    stage.mkdir(parents=True)
    record = {**kept, "kind": "qat_sweep", "fingerprint": fingerprint, "results": results, "files": {}, "digests": {}}
    write_json(stage / "record.json", sealed({**record, "id": "made"}))
    run = read_json(folder / "run.json")
    run["stages"]["sweep/qat"] = {"kind": "qat_sweep", "fingerprint": fingerprint, "id": "made", "why": None}
    write_json(folder / "run.json", sealed(run))


def main() -> None:
    """Copy, time, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    given = parser.parse_args().results
    found: dict[str, Any] = {"measured_at": now(), "environment": environment(), "trials": TRIALS, "runs": RUNS}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "results"
        shutil.copytree(given, root)
        store = Store(root)
        folder = next(one for one in reversed(store.run_folders()) if read_json(one / "run.json")["complete"])
        run = read_json(folder / "run.json")
        with_trials(store, folder)
        page = Path(scratch) / "page.html"
        found["report_s"] = timed("report", folder.name, "--results", str(root), "--output", str(page))
        found["report_bytes"] = page.stat().st_size
        for number in range(RUNS - len(store.run_folders())):
            copy = root / "runs" / f"20000101T{number:06d}-many"
            copy.mkdir()
            write_json(copy / "run.json", sealed({**run, "id": copy.name}))
        found["runs_s"] = timed("runs", "--results", str(root))
        found["runs_100_s"] = timed("runs", "--results", str(root), "--limit", "100")
        found["help_s"] = timed("--help")
    write_json(REFERENCE / "pages_scale.json", found)
    print(f"a page of {TRIALS} trials: {found['report_s']:.1f} s, {found['report_bytes'] / 1e6:.1f} MB")
    print(f"raq runs among {RUNS}: {found['runs_s']:.2f} s; with --limit 100: {found['runs_100_s']:.1f} s")
    print(f"raq --help: {found['help_s']:.2f} s")


if __name__ == "__main__":
    main()
