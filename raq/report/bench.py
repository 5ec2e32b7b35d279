"""The terminal, for what is measured: `raq bench`, `raq compare`, how disturbed it was. Neither torch nor ray."""

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from raq.experiment.measurement import Margin
from raq.report.ratios import SharedRounds, shared_rounds
from raq.report.table import table_of_throughput
from raq.report.terminal import clean, plain_console, printable, say
from raq.report.types import ComparedLatency, Ending
from raq.store.results import Throughput

ENDED = {
    "precision": "the precision asked for was reached",
    "budget": "the time was up (budget) before all asked for was reached",
    "rounds": "the rounds asked for were done",
    "repetitions": "the repetitions asked for were done, one contender after the other: no intervals",
}


class BenchDisplay:
    """How far a measurement is, on a terminal's standard error; nothing elsewhere."""

    def __init__(self, quiet: bool) -> None:
        console = plain_console(stderr=True)
        columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
        # drawn when asked to: a thread that draws by itself would work on the CPUs that are measured
        shown = {"transient": True, "auto_refresh": False, "disable": quiet or not console.is_terminal}
        self.bar = Progress(*columns, console=console, **shown)  # type: ignore[arg-type]
        self.task = self.bar.add_task("", total=1.0, text="")

    def progress(self, share: float, text: str) -> None:
        """Take in how far it is."""
        self.bar.update(self.task, completed=share, text=text, refresh=True)

    def __enter__(self) -> "BenchDisplay":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()


def measurement_in_words(found: Ending) -> list[str]:
    """How a measurement ended, and what disturbed it; one line each."""
    stopped_by, elapsed_s, noise = found.get("stopped_by"), found.get("elapsed_s"), found.get("noise") or {}
    if stopped_by is None:
        return []
    launches = "1 launch" if found["launches"] == 1 else f"{found['launches']} launches"
    lines = [f"{launches}, {elapsed_s or 0:.0f} s: {ENDED[stopped_by]}"]
    if noise.get("disturbed_slots"):
        signs = []
        if waited := noise.get("waited"):
            signs.append(f"a thread waited {100 * waited['max']:.0f}% of the time")
        for extent, words in ((noise.get("foreign_cpus"), "others"), (noise.get("stolen_cpus"), "the hypervisor")):
            if extent:
                signs.append(f"{words} took {extent['max']:.1f} CPUs")
        signs += noise.get("gpus") or []
        lines.append(
            f"{noise['disturbed_slots']} of {noise['slots']} samples were disturbed (at worst {', '.join(signs)}); "
            f"{noise['repeated_slots']} samples were taken again"
        )
    handover = noise.get("handover_us")
    if handover and noise.get("far_apart_slots"):
        earlier = handover.get("remembered")
        near = handover["near"] if earlier is None else min(earlier, handover["near"])
        where = "where they were near" if near == handover["near"] else "in an earlier measurement"
        lines.append(
            f"in {noise['far_apart_slots']} of {noise['slots']} samples the CPUs were far apart: threads took "
            f"{handover['median']:.1f} us to hand over (median of all samples), {near:.1f} {where}"
        )
    return lines


def disagreement_in_words(rows: Sequence[ComparedLatency]) -> str | None:
    """That launches differ by more than their rounds explain, or drift, in comparisons with the best FP32."""
    known = [found for row in rows if (found := row.get("launch_agreement_over_best_fp32"))]
    least_p = DISAGREE_P / max(1, 2 * len(known))  # of all of them at once
    differ = [found for found in known if found["p"] is not None and found["p"] < least_p]
    drift = [found for found in known if found["drift_p"] < least_p]
    if not differ and not drift:
        return None
    said = []
    if differ:
        most = max(found["between"] or 0.0 for found in differ)
        said.append(f"launches differ by more than their rounds explain in {len(differ)} (at most ±{100 * most:.1f}%)")
    if drift:
        said.append(f"speed drifted from launch to launch in {len(drift)}")
    return f"of {len(known)} comparisons with the best FP32, {' and '.join(said)}: the intervals allow for it"


def disturbed_warning(compared: Sequence[tuple[str, SharedRounds]]) -> str | None:
    """A warning, if too few rounds of one of these comparisons, each with its name, were undisturbed."""
    doubtful = [(name, rounds) for name, rounds in compared if rounds.doubt]
    if not doubtful:
        return None
    name, rounds = max(doubtful, key=lambda one: one[1].disturbed / one[1].shared)
    when = "later, when the CPUs are near" if rounds.mostly_far else "on a quiet machine"
    return f"DISTURBED: {name}: {rounds.doubt}, too many to leave them out; measure again {when}"


def waited_warning(rows: Sequence[Throughput]) -> str | None:
    """A warning, if in half of the launches of a throughput a stream could have run, and did not."""
    waited = [share for row in rows if (share := row.get("waited_share") or 0.0) > MAX_WAITED]
    if not waited:
        return None
    said = f"DISTURBED: {len(waited)} of {len(rows)} throughputs: a stream waited {100 * max(waited):.0f}% of the time"
    return f"{said}; measure again on a quiet machine"


COLUMNS: tuple[tuple[str, bool, Callable[[Mapping[str, Any]], str]], ...] = (  # heading, also on 80 columns, cell
    ("batch", True, lambda row: str(row["batch_size"])),
    ("p50 ms", True, lambda row: f"{row['p50_ms']:.3f}"),
    ("mean ± std", False, lambda row: f"{row['mean_ms']:.3f} ± {_or_needs(row, 'std')}"),
    ("p90", True, lambda row: _or_needs(row, "p90")),
    ("p99", False, lambda row: _or_needs(row, "p99")),
    ("load ms", False, lambda row: f"{row['load_ms']:.0f}"),
    ("peak MB", False, lambda row: f"{row['peak_bytes'] / 1e6:.0f}"),
    ("speedup", True, lambda row: f"{row['speedup']:.3f}"),
    ("95% interval", True, lambda row: _interval(row["speedup_interval"])),
)
WIDE = 120
DISAGREE_P = 0.05
MAX_WAITED = 0.05  # of the time
SAME_SPEED = Margin().speed


def print_bench(console: Console, found: Mapping[str, Any]) -> None:
    """The table of `raq bench`, and for each artifact whether it is different from the first."""
    found = clean(dict(found))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("artifact", overflow="fold")
    shown = [(name, cell) for name, narrow, cell in COLUMNS if narrow or console.width >= WIDE]
    for name, _ in shown:
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(Text(printable(row["candidate"])), *(cell(row) for _, cell in shown))
    console.print(table)
    if found.get("throughput"):
        console.print(table_of_throughput(found["throughput"]))
        if warning := waited_warning(found["throughput"]):
            say(console, warning, "bold yellow")
    if found.get("no_throughput"):
        say(console, f"throughput is not known: {found['no_throughput']}", "yellow")
    for row in found["rows"]:
        if f"{row['candidate']}/{row['runtime']}" != row["baseline"]:
            say(console, difference_in_words(row))
    for line in measurement_in_words(cast(Ending, found)):
        say(console, line, "dim")
    of_size = {row["batch_size"]: row for row in reversed(found["rows"])}  # the first artifact, which is the baseline
    pairs = [
        (f"{row['candidate']} at batch {row['batch_size']}", shared_rounds(of_size[row["batch_size"]], row))
        for row in found["rows"]
    ]
    warning = disturbed_warning([(name, rounds) for name, rounds in pairs if rounds is not None])
    if warning:
        say(console, warning, "bold yellow")


def _or_needs(row: Mapping[str, Any], name: str) -> str:
    """A figure of a row; how many samples it would need, where there are too few."""
    value = row[f"{name}_ms"]
    return f"{value:.3f}" if value is not None else f"of {row['samples_needed'].get(name, 2)}+"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None or interval[0] == interval[1] else f"{interval[0]:.3f} to {interval[1]:.3f}"


def difference_in_words(row: Mapping[str, Any]) -> str:
    """Whether a row's time is different from its baseline's."""
    place = f"{row['candidate']} at batch {row['batch_size']} on {row['device']}"
    baseline, interval = row["baseline"].partition("/")[0], row["speedup_interval"]
    if interval is None:
        return f"{place}: {row['speedup']:.3f} times the speed of {baseline}, without an interval"
    bounds = f"{interval[0]:.3f} to {interval[1]:.3f}"
    if interval[0] >= 1 / (1 + SAME_SPEED) and interval[1] <= 1 + SAME_SPEED:
        return f"{place}: as fast as {baseline} within {100 * SAME_SPEED:g}% ({bounds} times its speed)"
    if interval[0] <= 1 <= interval[1]:
        return f"{place}: cannot be distinguished from {baseline} ({bounds} times its speed): measure longer (--budget)"
    word = "faster" if interval[0] > 1 else "slower"
    return f"{place}: {word} than {baseline}, {row['speedup']:.3f} times its speed ({bounds})"


def print_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """What `raq compare` found: the machines first."""
    for one in found["comparisons"]:
        say(console, f"{one['runs'][1]} against {one['runs'][0]}", "bold")
        if one["environment"]:
            say(console, f"NOT THE SAME MACHINE OR LIBRARIES: {'; '.join(one['environment'])}", "bold yellow")
        for line in one["conditions"]:
            say(console, f"  NOT THE SAME: {line}", "yellow")
        for changed in one["settings"]:
            before, after = ("unset" if value is None else value for value in changed["values"])
            say(console, f"  {changed['key']}: {before} -> {after}")
        shared = [stage["name"] for stage in one["stages"] if stage["shared"]]
        if shared:
            say(
                console,
                f"  both stand on the same {len(shared)} of {len(one['stages'])} stages: {', '.join(shared)}",
                "dim",
            )
        for stage in one["stages"]:
            if not stage["shared"] and not stage["follows"]:
                say(console, f"  {stage['name']} is another: {stage['why']}", "dim")
        follow = sum(stage["follows"] for stage in one["stages"])
        if follow:
            say(console, f"  {follow} more are others because what they are made from is", "dim")
        for candidate in one["candidates"]:
            say(console, f"  {candidate['name']}: {candidate['metric'] or 'metric'} {candidate['top1']['said']}")
            before, after = candidate["weight_bytes"]
            if before != after and None not in (before, after):
                say(console, f"    weights {before / 1e6:.2f} MB and {after / 1e6:.2f} MB")
            for row in candidate["latency"]:
                place = f"{row['device']}, {row['runtime']}, batch {row['batch_size']}"
                say(console, f"    {place}, over {row['baseline']}: {row['said']}")
        if one["only_in_one"]:
            say(console, f"  only in one of the two: {', '.join(one['only_in_one'])}", "dim")
