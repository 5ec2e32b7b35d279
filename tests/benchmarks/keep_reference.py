"""Keep a finished run in results/reference/: its summary, its records and raw samples, without this machine's paths.

    uv run python tests/benchmarks/keep_reference.py RUN NAME [--results DIR]

Artifacts and weights stay where they are: too large for the repository.
"""

import argparse
import io
import itertools
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from raq.report.answers import read_answers_of_run
from raq.report.console import print_summary
from raq.report.summary import summarise
from raq.store.files import read_json, write_json
from raq.store.local import Store

ROOT = Path(__file__).parents[2]


def without_paths(value: Any) -> Any:
    """The value with absolute paths cut to their last part."""
    if isinstance(value, dict):
        return {key: without_paths(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_paths(entry) for entry in value]
    return Path(value).name if isinstance(value, str) and value.startswith("/") else value


def short(value: Any) -> Any:
    """The value with its floats cut to six digits: samples are no more exact."""
    if isinstance(value, dict):
        return {key: short(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [short(entry) for entry in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def pairs(run_folder: Path) -> list[dict[str, Any]]:
    """Of each two candidates, how many test images only the first has right (lost) and only the second (won)."""
    answers = read_answers_of_run(run_folder)
    right = {name: found.right for name, found in answers.items() if found is not None}
    return [
        {"first": one, "second": other, "lost": int((right[one] & ~right[other]).sum()),
         "won": int((~right[one] & right[other]).sum())}
        for one, other in itertools.combinations(right, 2)
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args()
    store = Store(options.results.resolve())
    run_folder = store.find_run(options.run)
    target = ROOT / "results" / "reference" / options.name
    target.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = dict(summarise(run_folder))
    for candidate in summary["candidates"]:
        for artifact in candidate["artifacts"]:
            path = Path(artifact["path"])
            artifact["path"] = f"{path.parent.name}/{path.name}"
    summary["pairs"] = pairs(run_folder)
    reported = {key: value for key, value in summary.items() if not key.endswith("sweep")}  # those stand in the records
    write_json(target / "summary.json", without_paths(reported))
    run = read_json(run_folder / "run.json")
    write_json(target / "run.json", without_paths(run))
    records = {}
    for name, stage in run["stages"].items():
        record = store.find(stage["kind"], stage["fingerprint"])
        assert record is not None, f"{name} has no record"
        samples = store.stage_folder(stage["kind"], stage["fingerprint"]) / "samples.json"
        if samples.is_file():
            record["samples_ms"] = short(json.loads(samples.read_text()))
        del record["files"]  # not kept
        record.pop("digests", None)
        records[name] = without_paths(record)
    write_json(target / "records.json", records)
    text = io.StringIO()
    print_summary(Console(file=text, width=100), without_paths(summary), details=True)
    (target / "table.txt").write_text("\n".join(line.rstrip() for line in text.getvalue().strip().splitlines()) + "\n")


if __name__ == "__main__":
    main()
