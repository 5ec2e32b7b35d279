"""The latencies of a summary against one another: ratios within shared rounds, the fastest, the best FP32.

Neither torch nor ray.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from raq.bench.ratio_statistics import Ratios, counted_rounds, paired_ratio, undisturbed_ratios
from raq.experiment.schema import BASELINE
from raq.report.types import CandidateSummary, ComparedLatency

Place = tuple[str, int]
"""A device and a batch size."""


def row_ratios(one: ComparedLatency, other: ComparedLatency) -> Ratios:
    """The time of one row over that of another of the same measurement, by round; a list a launch."""
    if "round_launch" not in one or "round_launch" not in other:  # older records do not distinguish launches
        return [[a / b for a, b in zip(one["round_p50_ms"], other["round_p50_ms"], strict=True)]]
    both, excluded = _paired(one, other)
    one_ms, other_ms = [one["round_p50_ms"][n] for n, _ in both], [other["round_p50_ms"][m] for _, m in both]
    return undisturbed_ratios([one["round_launch"][n] for n, _ in both], one_ms, other_ms, excluded)


def _paired(one: ComparedLatency, other: ComparedLatency) -> tuple[list[tuple[int, int]], list[bool]]:
    """The rounds that two rows share, by their positions in either, and whether one of the two was disturbed."""
    place = {number: n for n, number in enumerate(_numbers(other))}
    both = [(n, place[number]) for n, number in enumerate(_numbers(one)) if number in place]
    return both, [one["round_disturbed"][n] or other["round_disturbed"][m] for n, m in both]


@dataclass(frozen=True)
class SharedRounds:
    """The rounds that a ratio of two rows is of.

    shared: rounds in which both have a sample; counted: how many of them the ratio is of; disturbed: how many of them
    others disturbed, or had the CPUs far apart; far: the latter alone.
    """

    shared: int
    counted: int
    disturbed: int
    far: int

    @property
    def mostly_far(self) -> bool:
        """Whether most of what disturbed them is that the CPUs were far apart."""
        return 2 * self.far > self.disturbed

    @property
    def doubt(self) -> str | None:
        """What is wrong with the rounds that count; None if they are undisturbed."""
        if not self.disturbed or self.counted < self.shared:
            return None
        if self.mostly_far:
            return f"in {self.far} of {self.shared} rounds the CPUs were far apart"
        return f"{self.disturbed} of {self.shared} rounds were disturbed"


def shared_rounds(one: ComparedLatency, other: ComparedLatency) -> SharedRounds | None:
    """The rounds that a ratio of two rows of a measurement is of; None for older records, which say too little."""
    if "round_launch" not in one or "round_launch" not in other:
        return None
    both, excluded = _paired(one, other)
    far = [False] * len(both)  # as in records that do not say
    if "round_far" in one and "round_far" in other:
        far = [one["round_far"][n] or other["round_far"][m] for n, m in both]
    counted = counted_rounds([one["round_launch"][n] for n, _ in both], excluded)
    return SharedRounds(len(both), len(counted), sum(excluded), sum(far))


def baseline_row(candidates: Sequence[CandidateSummary], row: ComparedLatency) -> ComparedLatency | None:
    """The row that the speedup of a row is over; None if it is not there."""
    rows = {
        f"{c['name']}/{r['runtime']}": r for c in candidates for r in rows_at(c, (row["device"], row["batch_size"]))
    }
    return rows.get(row["baseline"])


def _numbers(row: ComparedLatency) -> Sequence[int]:
    """Which of the rounds a row has a sample in; all of them in older records."""
    return row.get("round_number") or range(len(row["round_p50_ms"]))


def rows_at(candidate: CandidateSummary, place: Place) -> list[ComparedLatency]:
    """The latencies of a candidate at a place, one a runtime."""
    return [row for row in candidate["latency"] if (row["device"], row["batch_size"]) == place]


def runtime_of(row: ComparedLatency) -> str:
    """What executes a row's artifact: on GPUs the row says also how it is called (inductor+graph)."""
    return row["runtime"].partition("+")[0]


def fastest(rows: Sequence[ComparedLatency]) -> ComparedLatency | None:
    """The row whose time is the lowest, by the ratios within the rounds that two rows share; None without rows.

    Each next row is compared with the fastest so far, so that those with fewer rounds decide nothing between others.
    """
    best: ComparedLatency | None = None
    for row in sorted(rows, key=lambda row: -len(row["round_p50_ms"])):
        if best is None or ((shared := row_ratios(row, best)) and paired_ratio(shared)[0] < 1):
            best = row
    return best


def best_fp32(candidates: Sequence[CandidateSummary], place: Place) -> ComparedLatency | None:
    """The row of the fastest FP32 there is at a place, eager mode included, with its candidate; None without one."""
    rows = [row | {"candidate": c["name"]} for c in candidates if c["kind"] == BASELINE for row in rows_at(c, place)]
    return fastest(rows)


def compared(candidates: Sequence[CandidateSummary]) -> list[tuple[str, SharedRounds]]:
    """The rounds that the printed speedups are of, over the best FP32 and over the baseline, each with a name.

    Of older records, which say too little, there are none.
    """
    places = {(row["device"], row["batch_size"]) for candidate in candidates for row in candidate["latency"]}
    best = {place: best_fp32(candidates, place) for place in places}
    found = []
    for candidate in candidates:
        for row in candidate["latency"]:
            name = f"{candidate['name']}/{row['runtime']}"
            for plain in (best[row["device"], row["batch_size"]], baseline_row(candidates, row)):
                over = None if plain is None else f"{plain.get('candidate', BASELINE)}/{plain['runtime']}"
                rounds = None if plain is None or over == name else shared_rounds(plain, row)
                if rounds is not None:
                    found.append((f"{name} over {over} at batch {row['batch_size']}", rounds))
    return found
