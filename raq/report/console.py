"""The terminal: the plan of a run, and the table and the verdict at its end. Neither torch nor ray."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raq.artifact.runtimes import FP32_RUNTIME, RUNTIMES
from raq.experiment.schema import BASELINE
from raq.plan.prepare import DryRun
from raq.report.bench import disagreement_in_words, disturbed_warning, measurement_in_words, waited_warning
from raq.report.changed_answers import changed_in_words, class_names
from raq.report.checks import parity_in_words
from raq.report.live import seconds
from raq.report.losses import Tried, losses_in_words
from raq.report.methods import how_made
from raq.report.profile import profile_in_words
from raq.report.ratios import compared
from raq.report.sweep import print_layers, print_search, print_sweep
from raq.report.table import fits, heading, table_of_candidates, table_of_throughput
from raq.report.terminal import clean, paragraph, printable, say
from raq.report.types import CandidateSummary, RunSummary, Verdict

LEGEND = (
    "MB: weights above, file below. {accuracy} and drop{points}: 95% intervals below. int8: share of the MACs. "
    "ms: mean ± standard deviation; below, times as fast as fp32/eager, then as the fastest FP32 there is at that "
    "batch size (95% intervals)."
)


def _legend(summary: RunSummary) -> str:
    """What the table's columns are."""
    words = heading(summary)
    in_points = words.endswith(" %")
    return LEGEND.format(accuracy=words.removesuffix(" %"), points=" (points)" if in_points else "")


def print_plan(console: Console, run: DryRun) -> None:
    """The stages, each up to date or stale; of the stale ones why, where they would run, how long they took last.

    A table on a terminal; elsewhere a line a stage. Then how many there are to do.
    """
    rows = []
    for stage in run.plan:
        is_stale, took_s = stage.name in run.stale, run.expected_s.get(stage.name)
        why = f"{run.stale[stage.name]}; {run.where[stage.name]}" if is_stale else ""
        if stage.kind == "weights":
            why = "; ".join(["no training: reads the weights", *([why] if why else [])])
        state = "stale" if is_stale else "up to date"
        rows.append((stage.name, stage.fingerprint[:12], state, "" if took_s is None else seconds(took_s), why))
    if console.is_terminal:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for heading in ("stage", "fingerprint", "state", "took"):
            table.add_column(heading, no_wrap=True)
        table.add_column("why; where it would run")
        for name, fingerprint, state, took, why in rows:
            style = "yellow" if state == "stale" else "green"
            table.add_row(Text(name), Text(fingerprint, "dim"), Text(state, style), took, Text(printable(why)))
        console.print(table)
    else:
        for name, fingerprint, state, took, why in rows:
            say(console, f"{name:<22} {fingerprint}  {state:<10}{'  ' if took or why else ''}{took:>5}  {why}".rstrip())
    for note in run.notes:
        say(console, note, "yellow")
    todo, known = len(run.stale), run.expected_s
    text = "nothing to do: every stage is there already"
    if todo:
        text = f"{todo} of {len(rows)} stages to do"
        if known:
            of = "" if len(known) == todo else f", of {len(known)} of them"
            text += f"; they took {seconds(sum(known.values()))} last time{of}"
    say(console, text, "bold")


def print_summary(console: Console, summary: RunSummary, details: bool = False) -> None:
    """The table of a run and the verdict, last; with details also how it was measured, files, and the parity chain.

    On a terminal too narrow for all latencies in one table, each batch size has a table of its own.
    """
    summary = clean(summary)
    say(console, f"{summary['experiment']}, run {summary['run']}", "bold")
    _print_sweeps(console, summary)
    keys = sorted({(row["device"], row["batch_size"]) for c in summary["candidates"] for row in c["latency"]})
    for group in [keys] if fits(console, summary, keys) else [[key] for key in keys]:
        console.print(table_of_candidates(summary, group))
    if throughput := [row for candidate in summary["candidates"] for row in candidate.get("throughput", [])]:
        console.print(table_of_throughput(throughput))
        if said := waited_warning(throughput):
            say(console, said, "bold yellow")
    for measurement in summary["measurement"]:
        if why := measurement.get("no_throughput"):
            say(console, f"throughput is not known: {why}", "yellow")
    if details:
        paragraph(console, _legend(summary), "dim")
    if made_anew := summary.get("made_anew"):
        say(console, f"made anew since this run, so these are newer figures: {', '.join(made_anew)}", "yellow")
    for note in summary.get("notes", []):
        say(console, note, "yellow")
    _say_what_is_special(console, summary["candidates"])
    for said in (said for candidate in summary["candidates"] for said in how_made(candidate)):
        paragraph(console, said, "dim")
    if details:
        _print_details(console, summary)
    warning = disturbed_warning(compared(summary["candidates"]))
    if warning:
        say(console, warning, "bold yellow")
    machine = summary["environment"]["machine"]
    more = "" if details else "; what columns mean, files, parity: raq show --details"
    gpus = "".join(f", {gpu}" for gpu in machine["gpus"])
    say(console, f"measured on {machine['cpu']}, {machine['cpus']} CPUs{gpus}{more}", "dim")
    _print_chosen_file(console, summary)
    console.print()
    _print_verdict(console, summary["verdict"])


def _print_verdict(console: Console, found: Verdict) -> None:
    """What to ship and why; what QAT is worth."""
    paragraph(console, found["why"], "bold")
    if worth := found.get("worth"):
        paragraph(console, worth)


def _print_sweeps(console: Console, summary: RunSummary) -> None:
    """What was tried before the candidates were made."""
    if calibrations := summary.get("sweep"):
        print_sweep(console, calibrations)
    if search := summary.get("qat_sweep"):
        print_search(console, search)
    if layers := summary.get("layer_sweep"):
        print_layers(console, layers)
        console.print()


def _print_chosen_file(console: Console, summary: RunSummary) -> None:
    """Where the artifacts of the candidate are that the verdict ships, and how to load them as they were measured."""
    for candidate in summary["candidates"]:
        if candidate["name"] == summary["verdict"]["choice"]:
            for artifact in candidate["artifacts"]:
                say(console, f"{candidate['name']}, {artifact['target']}: {artifact['path']}", whole=True)
                runtime = RUNTIMES.get(artifact.get("runtime") or FP32_RUNTIME)
                threads = {row.get("threads") for row in candidate["latency"] if row["device"] == artifact["target"]}
                if runtime is not None and runtime.use and len(threads) == 1 and None not in threads:
                    line = runtime.how_to_load(artifact["path"], threads.pop(), artifact["target"])
                    say(console, line, "dim", whole=True)
            if variables := summary["environment"]["machine"].get("settings"):
                said = ", ".join(f"{name}={value}" for name, value in sorted(variables.items()))
                say(console, f"measured with these environment variables set: {said}", "dim")


def _print_details(console: Console, summary: RunSummary) -> None:
    """How it was measured, how far launches agree, where the artifacts are, and the parity chain of each candidate."""
    for measurement in summary["measurement"]:
        for line in measurement_in_words(measurement):
            say(console, f"{measurement['device']}: {line}", "dim")
        if why := measurement.get("not_profiled"):
            say(console, f"{measurement['device']}: where the time goes is not known: {why}", "yellow")
        for profile in measurement.get("profiles", []):
            say(console, profile_in_words(profile), "dim")
    rows = [row | {"candidate": c["name"]} for c in summary["candidates"] for row in c["latency"]]
    disagreement = disagreement_in_words(rows)
    if disagreement:
        say(console, disagreement, "dim")
    for candidate in summary["candidates"]:
        for artifact in candidate["artifacts"] if candidate["name"] != summary["verdict"]["choice"] else []:
            say(console, f"{candidate['name']}, {artifact['target']}: {artifact['path']}", whole=True)
    for candidate in summary["candidates"]:
        said = (
            losses_in_words(
                candidate.get("losses", []),
                Tried(candidate.get("methods"), candidate.get("effort"), candidate.get("backend")),
            )
            if candidate.get("program") in (None, candidate["name"])
            else None
        )
        if said:
            paragraph(console, f"{candidate['name']}, {said}", "dim")
        if changed := candidate.get("changed"):
            called = class_names(summary["data"].get("class_names"))
            paragraph(console, f"{candidate['name']}: {changed_in_words(changed, called)}", "dim")
        if candidate["parity"]:
            paragraph(console, f"{candidate['name']}, parity: {parity_in_words(candidate['parity'])}", "dim")


def _say_what_is_special(console: Console, candidates: Sequence[CandidateSummary]) -> None:
    """Activations of 7 bits, candidates that are not lowered here, int8 that is float on a GPU."""
    narrow = [c["name"] for c in candidates if c.get("reduce_range")]
    if narrow:
        said = (
            f"{', '.join(narrow)}: activations have 7 bits (reduce_range): without VNNI 8-bit kernels could saturate."
        )
        console.print(said, markup=False, highlight=False, style="yellow")
    for candidate in candidates:
        if candidate.get("not_lowered"):
            share = candidate["graph_int8_mac_share"]
            meant = "" if share is None else f"; its graph means {100 * share:.1f}% of the MACs to be int8"
            why = f"{candidate['name']} is not lowered: {candidate['not_lowered']}"
            say(console, f"{why}. Its accuracy is the program's own{meant}.", "yellow")
    _say_what_ran(console, candidates)
    notes = {a["note"] for c in candidates for a in c["artifacts"] if a["note"]}
    for note in sorted(notes):
        say(console, f"cuda: {note}: a gain there is the compiler's, not int8's.", "yellow")


def _say_what_ran(console: Console, candidates: Sequence[CandidateSummary]) -> None:
    """The share of int8 that was seen running, and weights that are packed anew at every call."""
    on_gpu = any(a["target"] != "cpu" for candidate in candidates for a in candidate["artifacts"])
    known_by = "by oneDNN, by the runtime itself, or on a GPU by torch's profiler"
    reported = f"(reported {known_by if on_gpu else 'by oneDNN, or the runtime itself'}), of all MACs"
    others = [candidate for candidate in candidates if candidate["kind"] != BASELINE]
    int8 = [
        (c["name"], a.get("executed_int8_mac_share"))
        for c in others
        if c["kind"] not in ("half", "weight_only")
        for a in c["artifacts"]
    ]
    half = [
        (c["name"], a.get("executed_half_mac_share")) for c in others if c["kind"] == "half" for a in c["artifacts"]
    ]
    for kernels, shares in (("int8", int8), ("16-bit", half)):
        seen = [f"{name} {100 * share:.1f}%" for name, share in shares if share is not None]
        if seen:
            say(console, f"seen running in {kernels} kernels {reported}: {', '.join(seen)}", "dim")
    for candidate in candidates:
        for artifact in candidate["artifacts"]:
            repacked = {size: count for size, count in (artifact.get("reorders_per_call") or {}).items() if count}
            if repacked:
                counts = ", ".join(f"{count} at batch {size}" for size, count in repacked.items())
                said = f"{candidate['name']}: weights are packed anew at every call, which is time lost: {counts}"
                say(console, said, "yellow")
