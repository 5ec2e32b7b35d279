"""What submitting costs over running: one experiment by `raq run` and by `raq submit` to an idle cluster, in turns.

    uv run python tests/benchmarks/submission.py [--rounds 3]

The record goes to results/reference/submission.json.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
FEW = ("ptq=null", "qat=null", "bench.batch_sizes=[1]", "bench.rounds=1", "bench.precision=null")


def main() -> None:
    from ray_nodes import ray_cluster
    from workplace import make_workplace

    from raq.environment import commit, environment
    from raq.store.files import now, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    settings = [f"--set={setting}" for setting in FEW]
    took: dict[str, list[float]] = {"run": [], "submit": []}
    with tempfile.TemporaryDirectory(prefix="raq-submission-") as scratch:
        folder = Path(scratch)
        place = make_workplace(folder, folder / "cache")
        os.environ |= {"RAQ_CACHE": str(place.cache), "RAY_AUTH_MODE": "token"}
        with ray_cluster(folder, ["--num-cpus=2", '--resources={"bench": 1}']) as cluster:
            os.environ["RAY_AUTH_TOKEN"] = cluster.token
            for number in range(rounds):
                for verb in ("run", "submit")[:: 1 if number % 2 else -1]:
                    where = ["--results", str(folder / f"{verb}-{number}")]
                    where += ["--address", cluster.dashboard] if verb == "submit" else []
                    started = time.monotonic()
                    done = place.raq(verb, "tiny.yaml", *settings, *where)
                    assert done.returncode == 0, done.stdout + done.stderr
                    took[verb].append(round(time.monotonic() - started, 1))
                    print(verb, took[verb][-1], flush=True)
    found = {**took, "overhead_s": round(statistics.median(took["submit"]) - statistics.median(took["run"]), 1)}
    print(found)
    path = ROOT / "results" / "reference" / "submission.json"
    write_json(path, {**found, "environment": environment(), "measured_at": now(), "commit": commit()})


if __name__ == "__main__":
    main()
