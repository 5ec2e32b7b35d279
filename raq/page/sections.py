"""The sections of a page, in order, and those of its first screens. Neither torch nor ray."""

from typing import Any

from raq.page import plots
from raq.page.about import deploy, environment, reproduce
from raq.page.changed import changed
from raq.page.parts import Cell, Section, Table, interval, number
from raq.page.proofs import kernels, layers, losses, parity, sizes
from raq.page.records import RunRecords, artifact_of
from raq.page.tried import calibrations, search, sensitivity, trainings
from raq.report.bench import measurement_in_words
from raq.report.ratios import runtime_of
from raq.store.views import refused_if_damaged

HOLDS = {True: ("holds", "good"), False: ("does not hold", "bad"), None: ("cannot tell", "open")}


def sections(run: RunRecords) -> list[Section]:
    """All that have something to show, in order."""
    made = (
        decision, verdict, candidates, speedups, rounds, layers, losses, kernels, parity, sizes, trainings,
        calibrations, search, sensitivity, changed, environment, reproduce, deploy,
    )  # fmt: skip
    found = []
    for make in made:
        with refused_if_damaged(f"this run ({make.__name__})"):
            section = make(run)
        if section is not None:
            found.append(section)
    return found


def verdict(run: RunRecords) -> Section:
    """What to ship, and each claim that it rests on."""
    found = run.summary["verdict"]
    rows = []
    for claim in found["claims"]:
        words, mark = HOLDS[claim["holds"]]
        rows.append(
            [
                Cell(claim["claim"]), Cell(words, None, mark),
                number(claim["value"], ".4g"), interval(claim["interval"], ".4g"), number(claim["margin"], ".4g"),
            ]
        )  # fmt: skip
    table = Table("Claims", ["claim", "", "found", "95% interval, all claims at once", "margin"], rows)
    notes = [*run.summary.get("notes", []), *filter(None, [found.get("worth")])]
    return Section(
        "verdict",
        "The claims behind it",
        (
            "A claim holds if its whole interval is on the right side of the margin, and does not if all of it is on "
            "the other side; else the data cannot tell.",
            "Several claims at once are corrected by Holm's procedure, so the intervals are wider than those below.",
        ),
        [notes, table] if notes else [table],
    )


def decision(run: RunRecords) -> Section | None:
    """The plot that decides, and those of the other places."""
    made = [plots.decision(run.summary["candidates"], place, run.rules) for place in run.places]
    found = [plot for plot in made if plot is not None]
    unit = "points" if run.rules.metric.in_points else run.rules.metric.short_name
    better = "above" if run.rules.metric.greater_is_better else "below"
    how = (
        f"Left is faster, {better} is better; the green band loses at most {run.rules.max_drop:g} {unit} against "
        "FP32's estimate.",
        "Bars are 95% intervals: of the metric over samples, of time by its ratio to eager FP32, in the same rounds.",
        "A marker's area is the size of the weights (eager mode has no file, and the smallest); the dotted line joins "
        "what nothing else beats in both.",
    )
    return Section("decision", "Accuracy against latency", how, found) if found else None


def candidates(run: RunRecords) -> Section:
    """A row a contender and place."""
    metric = run.rules.metric
    rows = []
    for candidate in run.summary["candidates"]:
        judged = candidate["metric"]
        value = None if judged is None else metric.scale * judged["value"]
        values = None if judged is None else [metric.scale * bound for bound in judged["interval"]]
        for row in candidate["latency"]:
            artifact = artifact_of(candidate, row)
            share = None if artifact is None else artifact.get("executed_int8_mac_share")
            chosen = run.summary["verdict"]["choice"] == candidate["name"] and runtime_of(row) != "eager"
            rows.append(
                [
                    Cell(candidate["name"], None, "chosen" if chosen else ""), Cell(row["runtime"]),
                    number(row["batch_size"], "d"), number(value, ".4g"), interval(values, ".4g"),
                    number(None if judged is None else judged["drop"], ".3g"),
                    interval(None if judged is None else judged["drop_interval"], ".3g"),
                    number(row["p50_ms"], ".3f"), number(row["speedup"]), interval(row["speedup_interval"]),
                    number(row.get("speedup_over_best_fp32")),
                    interval(row.get("speedup_over_best_fp32_interval")),
                    number(None if artifact is None else artifact["weight_bytes"] / 1e6),
                    number(None if artifact is None else artifact["size_bytes"] / 1e6),
                    number(None if share is None else 100 * share, ".1f"),
                ]
            )  # fmt: skip
    columns = [
        "candidate", "runtime", "batch", metric.heading, "95%", "drop", "95%", "ms",
        "over eager FP32", "95%", "over best FP32", "95%", "weights, MB", "file, MB", "int8 seen, % of MACs",
    ]  # fmt: skip
    how = (
        "A row a contender and batch size; a click on a heading sorts.",
        "drop: how much worse than FP32 on the same samples, with its own interval. ms: median of rounds.",
        "int8 seen: the share of multiply-accumulates in kernels that reported themselves while running.",
    )
    return Section("candidates", "Candidates", how, [Table("All contenders", columns, rows)])


def speedups(run: RunRecords) -> Section | None:
    """Ratios with their intervals."""
    made = [plots.speedups(run.summary["candidates"], key) for key in ("speedup_over_best_fp32", "speedup")]
    found = [plot for plot in made if plot is not None]
    how = (
        "Each point is a ratio of times within the same rounds, so that a slow minute slows both.",
        "A launch of the process counts as one value; the bars are 95% intervals over launches that may drift.",
        "To the right of the dotted line is faster.",
    )
    return Section("speedups", "Speed", how, found) if found else None


def rounds(run: RunRecords) -> Section | None:
    """What was measured, round by round."""
    made = [plots.rounds(run.summary["candidates"], place) for place in run.places]
    found: list[Any] = [plot for plot in made if plot is not None]
    said = [line for measured in run.summary["measurement"] for line in measurement_in_words(measured)]
    how = (
        "A point is the median of a contender's calls in one round; all contenders take turns within a round.",
        "Open markers were disturbed by others, or measured while the CPUs were far apart, and are left out of ratios "
        "where enough others remain.",
    )
    return Section("rounds", "Raw rounds", how, [said, *found], is_open=False) if found else None
