"""The tables of the pages: figures from the records in results/reference alone, keys from the experiment's schema.

    uv run python tests/pages.py            print them
    uv run python tests/pages.py --write    put them into the pages, and write results/reference/*/table.txt and
                                            experiments/schema.json anew

A page says where a table stands: between "<!-- table: NAME -->" and "<!-- end -->". tests/test_pages.py holds the
pages to the records.
"""

import argparse
import io
import json
import re
import statistics
import textwrap
from collections.abc import Callable
from pathlib import Path

from kept_records import REFERENCE, RUNS, Found, judged_now, read
from rich.console import Console

from raq.bench.ratio_statistics import relative_half_width
from raq.experiment import json_schema
from raq.report.console import print_summary

ROOT = Path(__file__).parents[1]


def commit_of(environment: Found) -> str:
    """The commit that a record names, short, and whether files had been changed then."""
    commit, _, changed = (environment.get("commit") or "").partition("-")
    return f"{commit[:7]}{', changed' if changed else ''}" if commit else "not recorded"


def number(value: float, digits: int = 2) -> str:
    return f"{round(value, digits) + 0.0:.{digits}f}"


def ratio(value: float, interval: list[float] | None) -> str:
    """A ratio with its interval, with digits that tell its bounds apart."""
    if interval is None:
        return f"{value:.2f} (no interval)"
    if interval[0] == interval[1]:
        return "1"
    digits = 2 if interval[1] < 10 else 1
    return f"{value:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def milliseconds(row: Found) -> str:
    digits = 0 if row["mean_ms"] >= 1000 else 1 if row["mean_ms"] >= 100 else 2
    spread = "" if row["std_ms"] is None else f" ± {row['std_ms']:.{digits}f}"
    return f"{row['mean_ms']:.{digits}f}{spread}"


NAMES = {"fp32": "FP32", "ptq": "PTQ", "qat": "QAT"}


def run_table(name: str) -> str:
    """Candidates of a kept run: sizes, accuracy, and latency at each batch size over eager and over the best FP32."""
    summary = judged_now(name)
    sizes = sorted({row["batch_size"] for c in summary["candidates"] for row in c["latency"]}, reverse=True)
    head = ["", "weights, MB", "top-1", "drop, points (95%)"]
    for size in sizes:
        head += [f"batch {size}, ms", "over eager FP32 (95%)", "over the best FP32 (95%)"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for c in summary["candidates"]:
        for runtime in dict.fromkeys(row["runtime"] for row in c["latency"]):
            eager, quantized = runtime == "eager", c["name"] != "fp32"
            how = "" if quantized else ", eager" if eager else ", compiled"
            cells = [f"{NAMES.get(c['name'], c['name'])}{how}"]
            cells.append("" if eager else number(c["artifacts"][0]["weight_bytes"] / 1e6))
            cells.append("" if eager else f"{100 * c['top1']:.2f}%")
            low, high = c["drop_interval"]
            cells.append(f"{c['drop_points']:.2f} ({low:.2f} to {high:.2f})" if quantized else "")
            for size in sizes:
                row = next(r for r in c["latency"] if (r["runtime"], r["batch_size"]) == (runtime, size))
                cells += [milliseconds(row), ratio(row["speedup"], row["speedup_interval"])]
                best = ratio(row["speedup_over_best_fp32"], row["speedup_over_best_fp32_interval"])
                cells.append(best if quantized else "")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def launches(name: str) -> str:
    """How much was measured."""
    summary = read(f"{name}/summary.json")
    rows = [row for c in summary["candidates"] for row in c["latency"]]
    measured = (summary.get("measurement") or [{}])[0]
    count = measured.get("launches") or 1
    ended = {"budget": "ended by its time", "precision": "ended by precision"}.get(measured.get("stopped_by"), "")
    took = f" in {measured['elapsed_s']:.0f} s" if measured.get("elapsed_s") else ""
    several = f"{count} launches" if count > 1 else "1 launch"
    return f"{several}{took}, {max(r['rounds'] for r in rows)} rounds{', ' if ended else ''}{ended}"


def quoted(name: str) -> str:
    """The verdict of a kept run, as a quotation, and what it rests on."""
    now = judged_now(name)
    words = textwrap.wrap(now["verdict"]["why"], 116)
    return "\n".join(
        [*(f"> {line}" for line in words), "", f"({launches(name)}; commit {commit_of(now['environment'])})"]
    )


def verdicts() -> str:
    """Every kept run: what was said of it when it was measured, and what is said now."""
    lines = ["| record | measured | it said | it says now |", "|---|---|---|---|"]
    for name in RUNS:
        now = judged_now(name)
        said, says = now["said"]["choice"], now["verdict"]["choice"]
        places = ", ".join(
            f"{c['choice'] or 'cannot tell'} at batch {c['batch_size']}" for c in now["verdict"]["choices"]
        )
        lines.append(
            f"| {name} ({commit_of(now['environment'])}) | {launches(name)} | {said or 'cannot tell'} | "
            f"{says or 'cannot tell'} ({places}): {now['verdict']['why']} |"
        )
    return "\n".join(lines)


def executed() -> str:
    """Shares of int8 as read and as seen running."""
    cases = {case["case"]: case for case in read("executed.json")["cases"]}
    names = {
        "resnet18-cifar": "resnet18-cifar",
        "resnet18-cifar, not frozen": "the same, not frozen",
        "vit_b_16": "vit_b_16 (float: products of activations)",
        "resnet50, any batch size": "resnet50 for any batch size",
        "resnet50, batch 1 alone": "resnet50 for a batch of 1 alone",
    }

    def percent(share: float) -> str:
        return f"{100 * share:.0f}%" if share in (0, 1) else f"{100 * share:.1f}%"

    lines = [
        "| | int8, read in the code | int8, seen running | weights packed anew at a call, batch 1 |",
        "|---|---|---|---|",
    ]
    for key, said in names.items():
        case = cases[key]
        lines.append(
            f"| {said} | {percent(case['read_int8_mac_share'])} | {percent(case['executed_int8_mac_share'])} | "
            f"{case['reorders_per_call']['1']} |"
        )
    return "\n".join(lines)


def peers() -> str:
    """Artifacts of several runtimes beside NNCF's int8 in OpenVINO: milliseconds, and times the baseline's."""
    found = [json.loads(path.read_text()) for path in sorted((REFERENCE / "peers").glob("*.json"))]
    names = list(dict.fromkeys(row["candidate"] for row in found[0]["measured"]["rows"]))
    lines = [f"| | batch | {' | '.join(names)} | launches |", f"|---|---|{'---|' * len(names)}---|"]
    for record in found:
        rows = {(row["candidate"], row["batch_size"]): row for row in record["measured"]["rows"]}
        for size in sorted({size for _, size in rows}):
            cells = [_beside(rows[name, size], rows[names[0], size]) for name in names]
            count = len(set(rows[names[1], size]["round_launch"]))
            network = record["model"].removeprefix("torchvision:")
            lines.append(f"| {network} | {size} | {' | '.join(cells)} | {count} |")
    return "\n".join(lines)


def _beside(row: Found, first: Found) -> str:
    """A latency, and how many times that of the first it is, with its interval."""
    if row is first:
        return f"{row['p50_ms']:.2f}"
    low, high = row["speedup_interval"] or (None, None)
    interval = " (no interval)" if low is None else f" ({1 / high:.2f} to {1 / low:.2f})"
    return f"{row['p50_ms']:.2f}: {1 / row['speedup']:.2f}{interval}"


def calibration() -> str:
    """The curve over calibration sizes."""
    sweep = read("calibration-sweep/records.json")["sweep/ptq"]["results"]
    rows = sorted(sweep["curve"], key=lambda row: row["size"])

    def against(row: Found) -> str:
        if row is rows[-1]:
            return ""
        low, high = row["against_largest_interval"]
        return f"{number(row['against_largest'])} ({low:.2f} to {high:.2f})"

    lines = [
        "| calibration images | " + " | ".join(str(row["size"]) for row in rows) + " |",
        "|---" * (len(rows) + 1) + "|",
        f"| drop, points, mean of {len(rows[0]['seeds'])} samples | "
        + " | ".join(f"{row['drop_points']:.2f}" for row in rows) + " |",
        "| standard deviation over samples | " + " | ".join(f"{100 * row['std_top1']:.2f}" for row in rows) + " |",
        f"| against {rows[-1]['size']:,} images (95%) | " + " | ".join(map(against, rows)) + " |",
    ]  # fmt: skip
    return "\n".join(lines)


def faults() -> str:
    """The fault matrix."""
    said = {
        "worker": "a process at work is killed",
        "node": "a node at work is lost, another comes after 5 s",
        "driver": "the job's process is killed",
        "head": "the head is lost with all nodes, all come back",
        "preemption": "a node at work gets a notice of 10 s and is lost, another comes",
        "storage": "S3 is silent for 30 s (nodes share nothing else)",
        "disk": "the results' disk is full until the run has ended; submitted again",
        "straggler": "a node at work gets a fifth of its time for 30 s",
        "hang": "a process at work stops for ever (`timeout_s`)",
    }
    found = read("faults.json")
    lines = [
        "| fault, each at random moments | runs | complete, records equal | with finished stages at stake | lost | "
        "seconds, median |",
        "|---|---|---|---|---|---|",
    ]
    for name, words in said.items():
        row = found["table"][name]
        staked = row.get("stages_at_stake")
        if staked is None:
            staked = sum(run["stages_done_before"] for run in found["runs"] if run["fault"] == name)
        lines.append(
            f"| {words} | {row['runs']} | {min(row['complete'], row['records_equal'])} | "
            f"{row['with_stages_done_before']} ({staked} stages) | {row['runs'] - row['nothing_lost']} | "
            f"{row['median_s']:.0f} |"
        )
    return "\n".join(lines)


def share(found: Found) -> str:
    """A count, of how many, with Wilson's interval of the share."""
    low, high = (100 * bound for bound in found["interval"])
    return f"{found['count']} of {found['of']} ({low:.1f}% to {high:.1f}%)"


def trust() -> str:
    """How far latencies can be trusted: what was asked of the measurement, what came out, and at which commit."""
    found = read("trust/trust.json")
    table, commits = found["table"], {k: commit_of(v["environment"]) for k, v in found["measured"].items()}
    rows = [
        ("quiet", "an int8 artifact against itself, called different", "at most 5%", "A/A called different"),
        ("quiet", "against one that sleeps 3% longer, called slower", "at least 95%", "3% slower called slower"),
        ("quiet", "the same: the interval holds the true ratio", "at least 95%",
         "quiet: interval holds the true ratio"),
        ("quiet", "the same: runs that reach ±2% within 30 s", "", "quiet: ended by precision"),
        ("neighbour", "beside a process that burns one core for random half seconds, 20 s: the interval holds the true "
         "ratio", "at least 90%", "neighbour: interval holds the true ratio"),
    ]  # fmt: skip
    lines = ["| | asked | measured (95%) | commit |", "|---|---|---|---|"]
    for phase, said, asked, key in rows:
        if key in table:
            lines.append(f"| {said} | {asked} | {share(table[key])} | {commits[phase]} |")
    if "bias of twins, percent" in table:
        mean, (low, high) = table["bias of twins, percent"]["mean"], table["bias of twins, percent"]["interval"]
        off = f"{mean:+.3f}% ({low:+.3f}% to {high:+.3f}%)"
        lines.append(
            f"| an artifact's speedup over its twin, off by | below 0.03% (the interval reaches further) | {off} | "
            f"{commits['quiet']} |"
        )
    width = f"±{100 * table['neighbour: median half width']:.1f}%"
    lines.append(f"| beside that process: half width of the interval, median | | {width} | {commits['neighbour']} |")
    return "\n".join(lines)


def records() -> str:
    """Every kept record: when, at which commit and on which CPU it was measured."""
    lines = ["| record | measured | commit | CPU |", "|---|---|---|---|"]

    def add(name: str, at: str | None, environment: Found) -> None:
        machine = environment["machine"]
        vnni = "AVX-512 VNNI" if "avx512_vnni" in machine["features"] else "AVX2, no VNNI"
        lines.append(
            f"| {name} | {(at or 'not recorded')[:10]} | {commit_of(environment)} | {machine['cpu']}, {vnni}, "
            f"{machine['cpus']} CPUs |"
        )

    for name in (*RUNS, "minilm"):
        add(name, re.sub(r"(\d{4})(\d\d)(\d\d).*", r"\1-\2-\3", read(f"{name}/summary.json")["run"]),
            read(f"{name}/summary.json")["environment"])  # fmt: skip
    for name in sorted(str(path.relative_to(REFERENCE)) for path in REFERENCE.rglob("*.json")):
        found = read(name)
        if isinstance(found, dict) and "measured_at" in found and "environment" in found:
            add(name, found["measured_at"], found["environment"])
    for phase, measured in read("trust/trust.json")["measured"].items():
        add(f"trust/trust.json, {phase}", measured["at"], measured["environment"])
    return "\n".join(lines)


def spread() -> str:
    """One bench again and again over two hours: what its speedups came to, and whether intervals held that."""
    table = read("trust/trust.json")["table"]["spread"]
    lines = [
        "| speedup | mean, CPUs near | CPUs far apart | both in one run | "
        "interval holds the mean of the others like it | of all others | half width, median | runs within ±2% |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        if not isinstance(row, dict) or "holds the others' mean" not in row:
            continue
        held, alike = row["holds the others' mean"], row["holds the mean of those like it"]
        means = [
            f"{found['mean']:.3f} ({found['runs']} runs)" if (found := row["CPUs"].get(state)) else ""
            for state in ("near", "far", "both")
        ]
        lines.append(
            f"| {name} | {' | '.join(means)} | {alike['count']} of {alike['of']} | {held['count']} of {held['of']} | "
            f"±{100 * row['median half width']:.1f}% | {row['within 2%']} |"
        )
    return "\n".join(lines)


def protocols() -> str:
    """Speedups of the same artifacts over eager FP32 by three ways to measure."""
    lines = [
        "| over eager FP32 | interleaved, own processes (95%) | in one process | one after the other, as published |",
        "|---|---|---|---|",
    ]
    for name, row in read("trust/trust.json")["table"]["bias"].items():
        if not name.startswith("fp32/eager"):
            turns = ratio(row["interleaved"], row["interval"])
            lines.append(f"| {name} | {turns} | {row['one process']:.2f} | {row['published']:.2f} |")
    return "\n".join(lines)


def reached() -> str:
    """How precise kept runs of real experiments are, and where their budget went."""
    lines = [
        "| experiment | measured | half widths over the best FP32, by batch size | "
        "time of eager FP32, compiled FP32, all others |",
        "|---|---|---|---|",
    ]
    for name in ("cifar10", "mixed-precision"):
        widths: dict[int, list[float]] = {}
        for c in judged_now(name)["candidates"][1:]:
            for row in c["latency"]:
                width = relative_half_width(row["speedup_over_best_fp32_interval"])
                assert width is not None
                widths.setdefault(row["batch_size"], []).append(width)
        said = "; ".join(
            f"batch {size}: " + ", ".join(f"±{100 * width:.1f}%" for width in found)
            for size, found in sorted(widths.items())
        )
        results = read(f"{name}/records.json")["bench/cpu"]["results"]
        spent = {contender: sum(parts.values()) for contender, parts in results["spent_s"].items()}
        parts = [spent.pop("fp32/eager"), spent.pop("fp32/inductor"), sum(spent.values())]
        shares = ", ".join(f"{100 * part / results['elapsed_s']:.0f}%" for part in parts)
        lines.append(f"| {name} | {launches(name)} | {said} | {shares} |")
    return "\n".join(lines)


def two_speeds() -> str:
    """One bench at several times of an hour: milliseconds at batch 1, launch by launch in order of time."""
    names = {"fp32/eager": "FP32, eager", "fp32/inductor": "FP32, compiled", "ptq/inductor": "PTQ"}
    lines = ["| began (UTC) | " + " | ".join(f"{said}, ms" for said in names.values()) + " |", "|---" * 4 + "|"]
    for run in read("trust/two-speeds.json")["runs"]:
        cells = []
        for name in names:
            times = list(run["launch_p50_ms"][name].values())
            middle = (min(times) * max(times)) ** 0.5
            low, high = ([t for t in times if (t < middle) is near] for near in (True, False))
            apart = max(times) > 1.15 * min(times)
            parts = [part for part in (low, high) if part] if apart else [times]
            cells.append(", ".join(f"{statistics.median(part):.2f} ({len(part)} of {len(times)})" for part in parts))
        lines.append(f"| {run['began'][11:16]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def simulated() -> str:
    """Simulated coverage under drift."""
    lines = ["| correlation from launch to launch | drift, sd | interval holds the truth | half width, median | "
             "runs that ended within ±2%, and hold it |", "|---|---|---|---|---|"]  # fmt: skip
    for row in read("trust/trust.json")["table"]["simulated coverage"]:
        held, narrow = row["coverage"], row["of those within 2%"]
        among = "none" if narrow is None else f"{100 * narrow['count'] / narrow['of']:.1f}% of {narrow['of']}"
        lines.append(
            f"| {row['correlation']:g} | {100 * row['deviation']:g}% | {100 * held['count'] / held['of']:.1f}% of "
            f"{held['of']} | ±{100 * row['median half width']:.1f}% | {among} |"
        )
    return "\n".join(lines)


def timm() -> str:
    """What became of each of timm's architectures; speeds over the fastest FP32, where they were measured."""
    lines = [
        "| model | side | int8 share of MACs | QAT's graph | SQNR of FP32, int8, dB | weights packed anew, int8 | "
        "int8 over the best FP32: batch 1 | batch 8 |",
        "|---" * 8 + "|",
    ]
    for path in sorted((REFERENCE / "timm").glob("*.json")):
        found = read(f"timm/{path.name}")
        if "int8_executed" not in found:
            lines.append(
                f"| {found['model']} | {found.get('side', '')} | {found['reason'] or 'not lowered'} |" + " |" * 5
            )
            continue
        share = f"{found['int8_mac_share']:.3f} meant, {found['int8_executed']:.3f} ran"
        quality = ", ".join(
            "equal" if db is None else f"{db:.1f}" for db in (found["fp32_sqnr_db"], found["int8_sqnr_db"])
        )
        packed = ", ".join(f"{count} at {size}" for size, count in found["int8_reorders"].items() if count) or "none"
        speeds = [_least_speedup(found.get("speedups", []), size) for size in (1, 8)]
        cells = (found["model"], str(found["side"]), share, found["qat"], quality, packed, *speeds)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def minilm() -> str:
    """A sentence encoder in the modes of quantization."""
    lines = [
        "| | MB of weights | found | lost against FP32 | over the best FP32: batch 1 | batch 8 |",
        "|---" * 6 + "|",
    ]
    for candidate in read("minilm/summary.json")["candidates"]:
        metric, weights = candidate["metric"], candidate["artifacts"][0]["weight_bytes"] / 1e6
        lost, speeds = "", ["", ""]
        if candidate["kind"] != "fp32":
            low, high = metric["drop_interval"]
            lost = f"{metric['drop']:.3f} ({low:.3f} to {high:.3f})"
            rows = {row["batch_size"]: row for row in candidate["latency"]}
            speeds = [
                ratio(rows[size]["speedup_over_best_fp32"], rows[size]["speedup_over_best_fp32_interval"])
                for size in (1, 8)
            ]
        lines.append(f"| {candidate['name']} | {weights:.1f} | {metric['value']:.3f} | {lost} | {' | '.join(speeds)} |")
    return "\n".join(lines)


def _least_speedup(speedups: list[Found], size: int) -> str:
    """Over the faster of eager and compiled FP32 at this batch size, with its interval."""
    there = [each for each in speedups if each["batch_size"] == size]
    least = min(there, key=lambda each: float(each["value"]), default=None)
    return "not measured" if least is None else ratio(least["value"], least["interval"])


def ptq_methods() -> str:
    """What each method wins back, a row a network and method."""
    head = (
        "| network | step | drop, points (95%) | p, same accuracy | logits, dB | answers changed | layers equalized, "
        "of these by multiplications | s |\n|---|---|---|---|---|---|---|---|\n"
    )
    rows = []
    for path in sorted((REFERENCE / "ptq_methods").glob("*.json")):
        found = json.loads(path.read_text())
        for at, row in enumerate(found["rows"]):
            low, high = row["drop_interval"]
            first = f"{found['network']}, FP32 {100 * found['fp32_top1']:.2f}% of {found['test_images']:,}"
            rows.append(
                f"| {first if at == 0 else ''} | {row['step']} | {row['drop']:.2f} ({low:.2f} to {high:.2f}) | "
                f"{_p(row['same_accuracy_p'])} | {row['sqnr_db']:.1f} | {row['changed']} | "
                f"{row['equalized']}, {row['multiplied']} | {row['seconds']:.0f} |"
            )
    return head + "\n".join(rows)


def _p(value: float) -> str:
    """A probability; one that is too small for a number is not 0."""
    return f"{value:.2g}" if value else "below 1e-300"


def small_data_training() -> str:
    """The recipe, and all but one of its pieces."""
    found = json.loads((REFERENCE / "small_data_training.json").read_text())
    seeds = len(found["rows"][0]["top1"])
    head = f"| otherwise | top-1, median of {seeds} seeds | least to most |\n|---|---|---|\n"
    return head + "\n".join(
        f"| {row['otherwise']} | {100 * row['median']:.1f}% | {100 * min(row['top1']):.1f} to "
        f"{100 * max(row['top1']):.1f}% |"
        for row in found["rows"]
    )


def small_data_quantized() -> str:
    """What PTQ and QAT lose of the network that the recipe trains, a row a seed."""
    found = json.loads((REFERENCE / "small_data_training.json").read_text())
    lines = ["| seed | FP32 | candidate | drop, points (95%) | p, same accuracy |", "|---|---|---|---|---|"]
    for row in found["quantized"]:
        low, high = row["drop_interval"]
        lines.append(
            f"| {row['seed']} | {100 * row['fp32_top1']:.2f}% | {row['step']} | {row['drop']:.2f} ({low:.2f} to "
            f"{high:.2f}) | {_p(row['same_accuracy_p'])} |"
        )
    return "\n".join(lines)


def nncf() -> str:
    """What NNCF's quantize_pt2e loses on the networks that it was tried on."""
    lines = ["| network | NNCF's quantize_pt2e | drop, points (95%) | s |", "|---|---|---|---|"]
    for path in sorted((REFERENCE / "ptq_methods").glob("*.json")):
        found = json.loads(path.read_text())
        for at, row in enumerate(found.get("nncf", {"rows": []})["rows"]):
            low, high = row["drop_interval"]
            lines.append(
                f"| {found['network'] if at == 0 else ''} | {row['step'].removeprefix('quantize_pt2e, ')} | "
                f"{row['drop']:.2f} ({low:.2f} to {high:.2f}) | {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def observers() -> str:
    """What calibration alone loses by each observer, on the networks that they were tried on."""
    found = [json.loads(path.read_text()) for path in sorted((REFERENCE / "ptq_methods").glob("*.json"))]
    tried = [one for one in found if "ranges" in one]
    names = list(dict.fromkeys(row["observer"] for one in tried for row in one["ranges"]["rows"]))
    lines = [f"| network | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for one in tried:
        cells = []
        for name in names:
            first, *others = [row for row in one["ranges"]["rows"] if row["observer"] == name]
            low, high = first["drop_interval"]
            more = "".join(f"; {row['drop']:.2f}" for row in others)
            cells.append(f"{first['drop']:.2f} ({low:.2f} to {high:.2f}){more}")
        lines.append(f"| {one['network']}, FP32 {100 * one['fp32_top1']:.2f}% | {' | '.join(cells)} |")
    return "\n".join(lines)


def qat_methods() -> str:
    """What each training gains over PTQ, a row a network and training."""
    head = "| network | step | drop, points (95%) | p | gain over PTQ, points (95%) | p | s |\n" + "|---" * 7 + "|\n"
    rows = []
    for path in sorted((REFERENCE / "qat_methods").glob("*.json")):
        found = json.loads(path.read_text())
        network = (
            f"{found['network']}, FP32 {100 * found['fp32_top1']:.2f}% of {found['test_images']:,}, "
            f"{found['epochs']} epochs of {found['train_images']:,}"
        )
        for at, row in enumerate(found["rows"]):
            low, high = row["drop_interval"]
            gain = ""
            if "gain" in row:
                gain = f"{row['gain']:.2f} ({row['gain_interval'][0]:.2f} to {row['gain_interval'][1]:.2f})"
            rows.append(
                f"| {network if at == 0 else ''} | {row['step']} | {row['drop']:.2f} ({low:.2f} to {high:.2f}) | "
                f"{_p(row['same_accuracy_p'])} | {gain} | {_p(row['gain_p']) if gain else ''} | {row['seconds']:.0f} |"
            )
    return head + "\n".join(rows)


def training_curves() -> str:
    """Work against accuracy, a row a training."""
    head = (
        "| training | work, epochs of full-size images | top-1 of 10,000 (95%) | s | threads |\n|---|---|---|---|---|\n"
    )
    rows = []
    for path in sorted((REFERENCE / "training_recipes").glob("*.json")):
        found = json.loads(path.read_text())
        if path.stem != "ablation":
            low, high = (100 * one for one in found["top1_interval"])
            rows.append(
                f"| {found['name']} | {found['work']:.2f} | {100 * found['top1']:.2f}% ({low:.2f} to {high:.2f}) | "
                f"{found['seconds']:.0f} | {found['threads']} |"
            )
    return head + "\n".join(rows)


def training_ablation() -> str:
    """The recipe, and all but one of its pieces."""
    found = json.loads((REFERENCE / "training_recipes" / "ablation.json").read_text())
    head = "| otherwise | top-1, a seed each | s |\n|---|---|---|\n"
    return head + "\n".join(
        f"| {row['otherwise']} | {', '.join(f'{100 * one:.2f}%' for one in row['top1'])} | "
        f"{', '.join(f'{one:.0f}' for one in row['seconds'])} |"
        for row in found["rows"]
    )


def keys() -> str:
    """The keys of an experiment, from the schema."""
    lines = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key in json_schema.every_key():
        path, pool = key.path, re.match(r"resources\.(train|quantize|bench)\.", key.path)
        if pool and pool[1] != "train":  # they are given the same
            continue
        if pool:
            path = path.replace(".train.", ".train, .quantize, .bench: ")
        cells = (path, key.allowed, key.default, key.meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "cifar10": lambda: run_table("cifar10"),
    "cifar10-avx2": lambda: run_table("cifar10-avx2"),
    "mixed-precision": lambda: run_table("mixed-precision"),
    "cifar10-verdict": lambda: quoted("cifar10"),
    "mixed-precision-verdict": lambda: quoted("mixed-precision"),
    "executed": executed,
    "peers": peers,
    "ptq_methods": ptq_methods,
    "small_data_quantized": small_data_quantized,
    "nncf": nncf,
    "observers": observers,
    "qat_methods": qat_methods,
    "training_curves": training_curves,
    "training_ablation": training_ablation,
    "small_data_training": small_data_training,
    "timm": timm,
    "minilm": minilm,
    "calibration": calibration,
    "faults": faults,
    "trust": trust,
    "records": records,
    "two-speeds": two_speeds,
    "protocols": protocols,
    "reached": reached,
    "verdicts": verdicts,
    "keys": keys,
}


def table_text(name: str) -> str:
    """table.txt of a kept run: its table and its verdict by today's rules, 100 columns wide."""
    text = io.StringIO()
    print_summary(Console(file=text, width=100), judged_now(name), details=True)
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines()) + "\n"


if "spread" in read("trust/trust.json")["table"]:
    TABLES["spread"] = spread
if "simulated coverage" in read("trust/trust.json")["table"]:
    TABLES["simulated"] = simulated

PAGES = ("README.md", "results/README.md", "experiments/README.md", "experiments/cluster.md")
PLACE = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def with_tables(page: str) -> str:
    """A page's text with every table as the records have it."""
    return PLACE.sub(lambda found: f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->", page)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if not options.write:
        for name, make in TABLES.items():
            print(f"## {name}\n\n{make()}\n")
    if options.write:
        for page in PAGES:
            (ROOT / page).write_text(with_tables((ROOT / page).read_text()))
        schema = json.dumps(json_schema.json_schema(), indent=1)
        (ROOT / "experiments" / "schema.json").write_text(schema + "\n")
        for name in RUNS:
            (REFERENCE / name / "table.txt").write_text(table_text(name))


if __name__ == "__main__":
    main()
