"""The runs kept in results/reference, computed again: intervals from the rounds and images that they keep, the verdict
by today's rules.
"""

import json
import math
from pathlib import Path
from typing import Any

from raq.bench.ratio_statistics import paired_ratio
from raq.report.claims import Drops, Measured, Rules
from raq.report.ratios import row_ratios
from raq.report.summary import set_against_best_fp32
from raq.report.verdict import verdict
from raq.statistics.paired import PairedAnswers
from raq.statistics.proportions import proportion_interval

REFERENCE = Path(__file__).parents[1] / "results" / "reference"
RUNS = ("cifar10", "cifar10-avx2", "calibration-sweep", "qat-as-written", "qat-sweep", "mixed-precision")
NORMAL_95 = 1.959963984540054
Found = dict[str, Any]


def read(name: str) -> Any:
    """A JSON file of the reference."""
    return json.loads((REFERENCE / name).read_text())


def known_drops(summary: Found) -> Drops:
    """The images that candidates lost and won, where a record keeps them.

    Older records keep the interval against FP32 alone, which is Agresti and Min's: its centre and width tell both.
    """
    counts: dict[tuple[str, str], PairedAnswers] = {}
    images = max((c["test_images"] or 0 for c in summary["candidates"]), default=0)
    for c in summary["candidates"][1:] if "pairs" not in summary else ():
        low, high = (value / 100 for value in c["drop_interval"])
        difference = round(c["drop_points"] / 100 * images)
        discordant = ((high - low) / 2 / NORMAL_95 * (images + 2)) ** 2 + difference**2 / (images + 2) - 1
        lost, won = (discordant + difference) / 2, (discordant - difference) / 2
        assert math.isclose(lost, round(lost), abs_tol=1e-3), "not an interval of that kind"
        counts["fp32", c["name"]] = PairedAnswers(round(lost), round(won), images)
    for pair in summary.get("pairs", []):
        counts[pair["first"], pair["second"]] = PairedAnswers(pair["lost"], pair["won"], images)
        counts[pair["second"], pair["first"]] = PairedAnswers(pair["won"], pair["lost"], images)
    return lambda first, second: counts.get((first, second))


def judged_now(name: str) -> Found:
    """The summary of a kept run, its intervals and its verdict by today's rules."""
    summary, settings = read(f"{name}/summary.json"), read(f"{name}/run.json")["settings"]
    counts = known_drops(summary)
    for c in summary["candidates"]:
        if c["top1"] is not None:
            c["top1_interval"] = list(proportion_interval(round(c["top1"] * c["test_images"]), c["test_images"]))
        if c["name"] != "fp32":
            known = counts("fp32", c["name"])
            assert known is not None
            c["drop_interval"] = list(known.interval())
        c["metric"] = None if c["top1"] is None else {
            "name": "top1", "unit": "points", "greater_is_better": True, "value": c["top1"],
            "interval": c["top1_interval"], "drop": c["drop_points"], "drop_interval": c["drop_interval"],
        }  # fmt: skip
        for row in c["latency"]:
            baseline = next(
                r for b in summary["candidates"] for r in b["latency"]
                if f"{b['name']}/{r['runtime']}" == row["baseline"] and r["batch_size"] == row["batch_size"]
            )  # fmt: skip
            value, interval = paired_ratio(row_ratios(baseline, row))
            row["speedup"], row["speedup_interval"] = value, list(interval) if interval else None
    set_against_best_fp32(summary["candidates"])
    measured = summary.setdefault("measurement", [])
    reported = {m["device"]: Measured(m.get("elapsed_s"), m.get("stopped_by")) for m in measured}
    return {
        **summary,
        "said": summary["verdict"],
        "verdict": verdict(summary["candidates"], Rules.of(settings), counts, reported),
    }
