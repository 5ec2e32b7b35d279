"""Which candidate to ship: decided by what was shown, place by place, or not at all. Neither torch nor ray.

A place is a device and a batch size. Requirements and equivalence are tested with margins (non-inferiority, two
one-sided tests: Schuirmann 1987), on the intervals that are printed: a claim holds if its whole interval is on the
right side of its margin, does not if all of it is on the other side, and is not known otherwise. The intervals of
claims that are made of several candidates at once are corrected for it: of m claims the clearest is tested at 0.05 / m,
the next at 0.05 / (m - 1), and so on, until one does not hold (Holm 1979). The point estimates alone decide nothing:
they choose which comparison is made.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from raq.bench.statistics import (
    CONFIDENCE,
    LEAST_LAUNCHES,
    Interval,
    Ratios,
    calm_ratios,
    drop_interval,
    launches_factor,
    paired_ratio,
)
from raq.experiment import BASELINE

Summary = dict[str, Any]
Place = tuple[str, int]
SAME_SIZE = 0.01  # weights that differ by less are equally large
WORK = {"fp32": 0, "ptq": 1, "qat": 2}  # what making a candidate takes, of candidates that are otherwise alike
MOST_TIMES = 100  # so much more evidence is not asked for: the two lie at the margin


@dataclass(frozen=True)
class Rules:
    """What the experiment asks. max_drop, accuracy_margin: points; speed_margin: a share; batch_size: that decides.

    precision, budget_s: of its bench, None where a run does not say.
    """

    max_drop: float
    accuracy_margin: float = 0.3
    speed_margin: float = 0.02
    batch_size: int | None = None
    then: str = "latency"
    precision: float | None = None
    budget_s: float | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rules":
        """From the settings of a run; what an older run does not say is as by default."""
        sweep = settings.get("sweep") or {}
        asked: dict[str, Any] = {"max_drop": settings["require"]["max_drop"]}
        if select := settings.get("select"):
            asked["accuracy_margin"] = select["margin"]["accuracy"]
            asked["speed_margin"] = select["margin"]["speed"]
            asked["batch_size"] = select["batch_size"]
        if sweep.get("select"):
            asked["then"] = sweep["select"]["then"]
        bench = settings.get("bench") or {}
        return cls(**asked, precision=bench.get("precision"), budget_s=bench.get("budget_s"))


@dataclass(frozen=True)
class Measured:
    """How long a device was measured, and why it ended; None where a record does not say."""

    elapsed_s: float | None = None
    stopped_by: str | None = None


Counts = Callable[[str, str], tuple[int, int, int] | None]
"""How many test images the first candidate alone has right (the second has lost them), how many the second alone has
(it has won them), and of how many; None where it is not known."""


@dataclass(frozen=True)
class Option:
    """A candidate in one runtime at a place."""

    candidate: Summary
    row: Summary

    @property
    def name(self) -> str:
        """The candidate's."""
        return str(self.candidate["name"])

    @property
    def contender(self) -> str:
        """Candidate and runtime."""
        return f"{self.name}/{self.row['runtime']}"

    @property
    def weight_bytes(self) -> int:
        """Of the artifact; of the candidate's first one in eager mode, which has none of its own."""
        own = [a for a in self.candidate["artifacts"] if a.get("runtime", "inductor") == self.row["runtime"]]
        return int((own or self.candidate["artifacts"])[0]["weight_bytes"])


def row_ratios(one: Summary, other: Summary) -> Ratios:
    """The time of one row over that of another of the same measurement, by round; a list a launch."""
    if "round_launch" not in one or "round_launch" not in other:  # older records: nothing tells launches apart
        return [[a / b for a, b in zip(one["round_p50_ms"], other["round_p50_ms"], strict=True)]]
    place = {number: n for n, number in enumerate(_numbers(other))}
    both = [(n, place[number]) for n, number in enumerate(_numbers(one)) if number in place]
    spoilt = [one["round_disturbed"][n] or other["round_disturbed"][m] for n, m in both]
    one_ms, other_ms = [one["round_p50_ms"][n] for n, _ in both], [other["round_p50_ms"][m] for _, m in both]
    return calm_ratios([one["round_launch"][n] for n, _ in both], one_ms, other_ms, spoilt)


def _numbers(row: Summary) -> Sequence[int]:
    """Which of the rounds a row had a turn in; all of them in older records."""
    return row.get("round_number") or range(len(row["round_p50_ms"]))


def best_fp32(candidates: Sequence[Summary], place: Place) -> Summary | None:
    """The row of the fastest FP32 there is at a place, eager mode included, with its candidate; None without one."""
    rows = [row | {"candidate": c["name"]} for c in candidates if c["name"] == BASELINE for row in _rows_at(c, place)]
    return fastest(rows)


def fastest(rows: Sequence[Summary]) -> Summary | None:
    """The row whose time is the lowest, by the ratios within the rounds that two rows share.

    Each next row is compared with the fastest so far, so that those with fewer rounds decide nothing between others.
    """
    best: Summary | None = None
    for row in sorted(rows, key=lambda row: -len(row["round_p50_ms"])):
        if best is None or ((shared := row_ratios(row, best)) and paired_ratio(shared)[0] < 1):
            best = row
    return best


def _rows_at(candidate: Summary, place: Place) -> list[Summary]:
    return [row for row in candidate["latency"] if (row["device"], row["batch_size"]) == place]


def verdict(
    candidates: Sequence[Summary], rules: Rules, counts: Counts, measured: Mapping[str, Measured] | None = None
) -> Summary:
    """The choice, why in words, every claim it rests on, and the choice at every place.

    candidates: of a summary, the baseline first. measured: by device.
    """
    return _Judge(candidates, rules, counts, measured or {}).judge()


class _Judge:
    """The claims as they are made, and what they come to."""

    def __init__(
        self, candidates: Sequence[Summary], rules: Rules, counts: Counts, measured: Mapping[str, Measured]
    ) -> None:
        self.candidates = candidates
        self.rules = rules
        self.counts = counts
        self.measured = measured
        self.claims: list[Summary] = []
        self.accurate: dict[str, Summary] = {}
        self.of_claim: dict[str, tuple[str, str, float]] = {}
        self.launches_of: dict[str, int] = {}

    def judge(self) -> Summary:
        baseline = self.candidates[0] if self.candidates else None
        places = sorted(
            {(r["device"], r["batch_size"]) for c in self.candidates for r in c["latency"]}, key=self._order
        )
        if baseline is None or not places or not baseline["artifacts"]:
            why = "Cannot tell which to ship: no candidate has been lowered, evaluated and measured."
            return {"choice": None, "why": why, "claims": [], "choices": []}
        self._judge_accuracy()
        found = {place: self._judge_place(place) for place in places}
        deciding = self._deciding(places)
        choice, why = found[deciding]
        if choice is None:
            why = self._cannot_tell(why, [place for place in places if found[place] == (None, why)])
        told = {found[deciding]}
        for place in places:
            other, reason = found[place]
            if other is None and found[place] not in told:
                why += f" {self._cannot_tell(reason, [p for p in places if found[p] == found[place]])}"
                told.add(found[place])
            elif other is not None and other != choice:
                why += f" {_at(place).capitalize()}, ship {other}."
        why = " ".join([why, *self._not_chosen(choice)])
        choices = [{"device": d, "batch_size": b, "choice": found[d, b][0]} for d, b in places]
        return {"choice": choice, "why": why, "claims": self.claims, "choices": choices}

    @staticmethod
    def _cannot_tell(reason: str, places: Sequence[Place]) -> str:
        where = " and ".join(_at(place) for place in sorted(places, reverse=True))
        return f"Cannot tell which to ship {where}: {reason}"

    def _order(self, place: Place) -> tuple[int, int]:
        devices = list(dict.fromkeys(row["device"] for c in self.candidates for row in c["latency"]))
        return devices.index(place[0]), place[1]

    def _deciding(self, places: Sequence[Place]) -> Place:
        """The place whose choice is the run's: on the first device, `select.batch_size`, else the largest."""
        here = [place for place in places if place[0] == places[0][0]]
        wanted = [place for place in here if place[1] == self.rules.batch_size]
        return (wanted or here)[-1]

    def _claim(
        self, text: str, value: float | None, interval: Interval | None, margin: float, holds: bool | None
    ) -> Summary:
        made = {
            "claim": text, "value": value, "interval": list(interval) if interval else None, "margin": margin,
            "holds": holds,
        }  # fmt: skip
        if made not in self.claims:
            self.claims.append(made)
        return made

    def _judge_accuracy(self) -> None:
        """What each quantized candidate loses against FP32, all of them at once."""
        quantized = [c["name"] for c in self.candidates[1:] if c["latency"]]
        margin = self.rules.max_drop
        levels = _step_down(
            {name: partial(self._drop, BASELINE, name) for name in quantized},
            lambda interval: _at_most(interval, margin) is not None, margin,
        )  # fmt: skip
        for name in quantized:
            self.accurate[name] = self._loses_at_most(
                f"{name} loses at most {margin:g} points of top-1", BASELINE, name, margin, levels[name]
            )

    def _drop(self, first: str, second: str, confidence: float) -> tuple[float, Interval] | None:
        """Points that the second candidate loses against the first, with an interval of this confidence."""
        counted = self.counts(first, second)
        if counted is None:
            return None
        lost, won, images = counted
        return 100 * (lost - won) / images, drop_interval(lost, won, images, confidence)

    def _loses_at_most(self, text: str, first: str, second: str, margin: float, confidence: float) -> Summary:
        """Whether the second candidate loses no more than the margin against the first."""
        value, interval = self._drop(first, second, confidence) or (None, None)
        made = self._claim(text, value, interval, margin, _at_most(interval, margin))
        self.of_claim[made["claim"]] = first, second, confidence
        return made

    def _admissible(self, option: Option) -> bool | None:
        """Whether a candidate loses no more than it may."""
        if option.name == BASELINE:
            return True
        holds: bool | None = self.accurate[option.name]["holds"]
        return holds

    def _judge_place(self, place: Place) -> tuple[str | None, str]:
        """The choice at a place, and why; without one, the reason."""
        plain = best_fp32(self.candidates, place)
        if plain is None:
            return None, "FP32 has not been measured there."
        options = [option for c in self.candidates for option in self._options(c, place)]
        slower = self._compare_with_fp32(options, plain, place)
        candidates = [o for o in options if self._admissible(o) is not False and o.name not in slower]
        able = [option for option in candidates if self._admissible(option)]
        if self.rules.then == "size":
            return self._smallest(candidates, able, place)
        first = fastest([option.row for option in able])
        best = next(option for option in able if option.row is first)
        for _ in able:  # estimates may be of few rounds: one that is shown to be faster takes its place
            shown_faster = next((o for o in able if o.name != best.name and self._is_faster(o, best)), None)
            best = shown_faster or best
        rivals = [option for option in candidates if option.name != best.name]
        margin = 1 + self.rules.speed_margin
        levels = _step_down(
            {r.contender: partial(paired_ratio, row_ratios(best.row, r.row)) for r in rivals},
            lambda interval: _at_most(interval, margin) is not None, margin,
        )  # fmt: skip
        shown = {r.contender: self._compare_speed(best, r, place, levels[r.contender]) for r in rivals}
        unsure = [rival for rival in rivals if shown[rival.contender][0]["holds"] is not True]
        if unsure:
            unknown = [rival for rival in unsure if shown[rival.contender][0]["interval"] is None]
            reasons = [self._too_few(best, unknown, place)] if unknown else []
            for rival in unsure:
                claim = shown[rival.contender][0]
                if not self._admissible(rival):
                    better = "is faster" if claim["holds"] is False else "may be faster"
                    reasons.append(self._unproven(rival, better))
                elif rival not in unknown:
                    reasons.append(self._too_close(best, rival, claim, place))
            return None, "; ".join(reasons) + "."
        unproven = [
            r for r in rivals
            if r not in able and shown[r.contender][1]["holds"] is not False
            and r.weight_bytes < (1 - SAME_SIZE) * best.weight_bytes
        ]  # fmt: skip
        if unproven and best.name == BASELINE:  # as fast and smaller, and perhaps accurate enough
            return None, "; ".join(self._unproven(r, "may be as fast and is smaller") for r in unproven) + "."
        equal = [r for r in rivals if r in able and shown[r.contender][1]["holds"] is True]
        perhaps = [r for r in rivals if r in able and shown[r.contender][1]["holds"] is None]
        choice, why = self._of_equals(best, equal, place)
        for more in [*([one] for one in perhaps), perhaps]:  # the choice must not hang on what is not known
            other, reason = self._of_equals(best, [*equal, *more], place)
            if other != choice:
                names = " and ".join(option.contender for option in more)
                doubt = f"whether {names} {_is(more)} at most {100 * self.rules.speed_margin:g}% slower than "
                doubt += f"{best.contender} is not known ({_found(shown[more[0].contender][1], 'times its speed')})"
                then = reason if other is None else f"then {other} would be the choice"
                return None, f"{doubt}, and {then.rstrip('.')}{self._minutes(shown[more[0].contender][1], place)}."
        return choice, why

    def _is_faster(self, option: Option, best: Option) -> bool:
        """Whether an option is shown to be faster than another by more than the margin."""
        launches = row_ratios(best.row, option.row)
        interval = paired_ratio(launches)[1] if launches else None
        return interval is not None and interval[0] > 1 + self.rules.speed_margin

    def _smallest(self, candidates: Sequence[Option], able: Sequence[Option], place: Place) -> tuple[str | None, str]:
        """The choice where size decides."""
        best = min(able, key=lambda o: (o.weight_bytes, WORK.get(o.candidate["kind"], 1), o.row["p50_ms"]))
        smaller = [o for o in candidates if o not in able and o.weight_bytes < (1 - SAME_SIZE) * best.weight_bytes]
        if smaller:
            return None, "; ".join(self._unproven(option, "is smaller") for option in smaller) + "."
        alike = [o for o in able if o.name != best.name and o.weight_bytes < (1 + SAME_SIZE) * best.weight_bytes]
        return self._of_equals(best, alike, place)

    def _options(self, candidate: Summary, place: Place) -> list[Option]:
        """What of a candidate may be shipped at a place: FP32 in every runtime, others as artifacts."""
        rows = _rows_at(candidate, place)
        if candidate["name"] == BASELINE:
            return [Option(candidate, row) for row in rows]
        row = fastest([row for row in rows if row["runtime"] != "eager"])
        return [Option(candidate, row)] if row is not None and candidate["artifacts"] else []

    def _compare_with_fp32(self, options: Sequence[Option], plain: Summary, place: Place) -> set[str]:
        """Claim that each quantized candidate is faster than FP32, in every runtime; those that are shown not to be."""
        slower = set()
        quantized = [option for option in options if option.name != BASELINE]
        for other in (o for o in options if o.name == BASELINE):
            levels = _step_down(
                {o.name: partial(paired_ratio, row_ratios(other.row, o.row)) for o in quantized},
                lambda interval: interval is not None and not interval[0] <= 1 <= interval[1], 1.0,
            )  # fmt: skip
            for option in quantized:
                value, interval = paired_ratio(row_ratios(other.row, option.row), levels[option.name])
                holds = None if interval is None else True if interval[0] > 1 else False if interval[1] < 1 else None
                best = "the best FP32, " if other.row["runtime"] == plain["runtime"] else ""
                self._claim(
                    f"{option.name} is faster than {best}{other.contender}, {_at(place)}", value, interval, 1.0, holds
                )
                if holds is False:
                    slower.add(option.name)
        return slower

    def _compare_speed(self, best: Option, rival: Option, place: Place, confidence: float) -> tuple[Summary, Summary]:
        """Whether a rival is no more than the margin faster than the best; and whether it is no more slower either."""
        margin = self.rules.speed_margin
        launches = row_ratios(best.row, rival.row)
        value, interval = paired_ratio(launches, confidence)
        not_faster = self._claim(
            f"{rival.contender} is at most {100 * margin:g}% faster than {best.contender} {_at(place)}",
            value, interval, 1 + margin, _at_most(interval, 1 + margin),
        )  # fmt: skip
        as_fast = None
        if interval is not None:
            as_fast = True if interval[0] >= 1 / (1 + margin) else False if interval[1] < 1 / (1 + margin) else None
        not_slower = self._claim(
            f"{rival.contender} is at most {100 * margin:g}% slower than {best.contender} {_at(place)}",
            value, interval, 1 / (1 + margin), as_fast,
        )  # fmt: skip
        for claim in (not_faster, not_slower):
            self.launches_of[claim["claim"]] = len(launches)
        return not_faster, not_slower

    def _of_equals(self, best: Option, equals: Sequence[Option], place: Place) -> tuple[str | None, str]:
        """Of options that are alike: the cheapest that is not less accurate than another of them."""
        smallest = min(option.weight_bytes for option in (best, *equals))

        def cost(option: Option) -> tuple[int, int]:
            larger = option.weight_bytes > (1 + SAME_SIZE) * smallest
            return (option.weight_bytes if larger else smallest), WORK.get(option.candidate["kind"], 1)

        group = sorted({option.name: option for option in (*equals, best)}.values(), key=cost)
        margin = self.rules.accuracy_margin
        unsure: Summary | None = None
        open_names: list[str] = []
        for option in group:
            made = [
                self._loses_at_most(
                    f"{option.name} loses at most {margin:g} points against {other.name}",
                    other.name, option.name, margin, _together(len(group) - 1),
                )
                for other in group
                if other is not option
            ]  # fmt: skip
            if all(claim["holds"] for claim in made):
                return option.name, self._ship(option, [o for o in group if o is not option], place)
            refuted = any(claim["holds"] is False for claim in made)
            if not refuted:
                open_names.append(option.name)
                unsure = unsure or next(claim for claim in made if claim["holds"] is None)
        if unsure is None:
            return None, "each of " + " and ".join(o.name for o in group) + " is less accurate than another of them."
        names = " and ".join(open_names if len(open_names) > 1 else [option.name for option in group])
        alike = "equally small" if self.rules.then == "size" else "equally fast"
        return None, (
            f"{names} are {alike}, and which is more accurate is not known within {margin:g} points "
            f"({unsure['claim']}: {_found(unsure, 'points')}){self._images(unsure)}; or accept a larger "
            "select.margin.accuracy."
        )

    def _ship(self, option: Option, equals: Sequence[Option], place: Place) -> str:
        """The sentence of a choice."""
        plain = best_fp32(self.candidates, place)
        assert plain is not None
        row = option.row
        parts = []
        if option.name != BASELINE:
            smaller = 1 - option.weight_bytes / self.candidates[0]["artifacts"][0]["weight_bytes"]
            parts.append(f"{100 * abs(smaller):.0f}% {'smaller' if smaller >= 0 else 'larger'} in weights")
            over = f"{plain['candidate']}/{plain['runtime']}"
            parts.append(f"{_times(*paired_ratio(row_ratios(plain, row)))} as fast as the best FP32 ({over})")
        baseline = row["baseline"]
        told = option.name != BASELINE and baseline == f"{plain['candidate']}/{plain['runtime']}"
        if option.contender != baseline and not told:
            parts.append(f"{_times(row['speedup'], row['speedup_interval'])} as fast as {baseline}")
        if option.contender == f"{BASELINE}/eager":
            parts.append("in eager mode, as its compiled artifact is not faster")
        said = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        text = f"Ship {option.name}: {said}{', ' if said else ''}{_at(place)}{_doubt(row)}"
        if option.name != BASELINE:
            claim = self.accurate[option.name]
            drop = "drop: " if claim["value"] < 0 else ""
            text += (
                f"; {_lost(claim['value'])} of top-1 ({drop}{claim['interval'][0]:.2f} to {claim['interval'][1]:.2f}"
            )
            text += f"{', all candidates at once' if len(self.accurate) > 1 else ''}; allowed: {claim['margin']:g})"
        elif self.accurate and not any(claim["holds"] for claim in self.accurate.values()):
            refused = all(claim["holds"] is False for claim in self.accurate.values())
            text += "; no quantized candidate " + ("may be shipped" if refused else "is shown to keep within max_drop")
        return text + self._alike(option, equals) + "."

    def _alike(self, option: Option, equals: Sequence[Option]) -> str:
        """What the others of a group of equals are, and why it is this one."""
        if not equals:
            return ""
        names = " and ".join(other.name for other in equals)
        size = self.rules.then == "size"
        within = f"{self.rules.accuracy_margin:g} points"
        if not size:
            within = f"{100 * self.rules.speed_margin:g}% in speed and {within}"
        mine = WORK.get(option.candidate["kind"], 1)
        cheaper = [
            option.weight_bytes < (1 - SAME_SIZE) * other.weight_bytes
            or (
                option.weight_bytes <= (1 + SAME_SIZE) * other.weight_bytes
                and mine < WORK.get(other.candidate["kind"], 1)
            )
            for other in equals
        ]
        if all(cheaper):
            smaller = all(option.weight_bytes < (1 - SAME_SIZE) * other.weight_bytes for other in equals)
            why = "is the smaller" if smaller else "takes less to make"
            return f"; equivalent to {names} within {within}, and {option.name} {why}"
        return f"; as {'small' if size else 'fast'} as {names}, and not less accurate"

    def _not_chosen(self, choice: str | None) -> list[str]:
        """Candidates that lose too much, may lose too much, are slower than FP32 somewhere, or were not measured."""
        lines = []
        for name, claim in self.accurate.items():
            if claim["holds"] is False:
                lines.append(f"{name} loses more than {claim['margin']:g} points ({_found(claim, 'points')}).")
            elif claim["holds"] is None and choice is not None:
                lines.append(f"{name} may lose more than {claim['margin']:g} points ({_found(claim, 'points')}).")
        for claim in self.claims:
            if " is faster than " in claim["claim"] and claim["holds"] is False:
                told = claim["claim"].replace(" is faster than ", " is slower than ")
                lines.append(f"{told}: {_times(claim['value'], claim['interval'])} its speed.")
        unmeasured = [c["name"] for c in self.candidates if c.get("not_lowered")]
        if unmeasured:
            lines.append(f"{', '.join(unmeasured)}: not lowered here, so not measured.")
        return lines

    def _unproven(self, option: Option, better: str) -> str:
        """That a candidate that may be better is not known to lose no more than it may."""
        claim = self.accurate[option.name]
        return (
            f"{option.name} {better}, and whether it loses at most {claim['margin']:g} points of top-1 is not known "
            f"({_found(claim, 'points')}){self._images(claim)}"
        )

    def _images(self, claim: Summary) -> str:
        """How many test images it would take, about: with the same shares of images lost and won."""
        first, second, confidence = self.of_claim[claim["claim"]]
        counted = self.counts(first, second)
        if counted is None:
            return ""
        lost, won, images = counted

        def decides(times: float) -> bool:
            interval = drop_interval(lost * times, won * times, images * times, confidence)
            return _at_most(interval, claim["margin"]) is not None

        if not decides(MOST_TIMES):
            return f"; it lies too near the margin for {images} test images, or {MOST_TIMES} times as many"
        low, high = 1.0, float(MOST_TIMES)
        for _ in range(20):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if decides(middle) else (middle, high)
        return f"; it takes about {_round(images * high)} test images, and {images} are there"

    def _too_few(self, best: Option, rivals: Sequence[Option], place: Place) -> str:
        """That there are too few launches for an interval."""
        count = max(1, min(len(row_ratios(best.row, rival.row)) for rival in rivals))
        few = "1 launch is" if count == 1 else f"{count} launches are"
        elapsed_s = self.measured.get(place[0], Measured()).elapsed_s
        longer = f" (about {_round(elapsed_s * LEAST_LAUNCHES / count)} s for {LEAST_LAUNCHES})" if elapsed_s else ""
        return (
            f"the speed of {', '.join(rival.contender for rival in rivals)} and {best.contender} has no interval, as "
            f"{few} too few for one; raise bench.budget_s{longer} or bench.rounds, and measure interleaved"
        )

    def _too_close(self, best: Option, rival: Option, claim: Summary, place: Place) -> str:
        """That two speeds cannot be told apart, nor called equivalent."""
        return (
            f"whether {rival.contender} is more than {100 * self.rules.speed_margin:g}% faster than {best.contender} "
            f"is not known ({_found(claim, 'times its speed')}){self._minutes(claim, place)}"
        )

    def _minutes(self, claim: Summary, place: Place) -> str:
        """How much longer it would take to measure, about: launches as far apart as these, without more drift."""
        value, (low, high), margin = claim["value"], claim["interval"], claim["margin"]
        half = math.log(high / value) if value < margin else math.log(value / low)
        room = abs(math.log(margin / value))
        narrower = room / max(half, 1e-12)
        factor = launches_factor(self.launches_of[claim["claim"]], narrower, MOST_TIMES)
        measured = self.measured.get(place[0], Measured())
        if factor is None:
            return f"; it lies too near the margin to be told in {MOST_TIMES} times as long"
        if measured.stopped_by == "precision" and self.rules.precision is not None:
            wanted = min(half * narrower, 0.9 * self.rules.precision)
            return f"; ask for a smaller bench.precision (about {wanted:.2g})"
        if measured.stopped_by == "rounds":
            return f"; it takes about {factor:.1f} times as many rounds (bench.rounds)"
        if measured.elapsed_s is None:
            return f"; it takes about {factor:.1f} times as long"
        wanted_s = _round(max(measured.elapsed_s * factor, self.rules.budget_s or 0.0))
        return f"; it takes about {max(1, round(wanted_s / 60))} min of measuring (bench.budget_s: {wanted_s})"


def _step_down(
    estimates: Mapping[str, Callable[[float], tuple[float, Interval | None] | None]],
    decides: Callable[[Interval | None], bool],
    margin: float,
) -> dict[str, float]:
    """The confidence at which each of several claims is tested, the clearest first (Holm 1979).

    estimates: value and interval at a confidence. decides: whether an interval settles a claim.
    """
    usual = {name: estimate(CONFIDENCE) for name, estimate in estimates.items()}

    def clarity(name: str) -> float:
        """How many half widths the value is from its margin."""
        found = usual[name]
        if found is None or found[1] is None:
            return 0.0
        return abs(found[0] - margin) / max(found[1][1] - found[1][0], 1e-12)

    levels: dict[str, float] = {}
    left = sorted(estimates, key=clarity, reverse=True)
    while left:
        confidence = _together(len(left))
        found = estimates[left[0]](confidence)
        if found is None or not decides(found[1]):
            return {**levels, **dict.fromkeys(left, confidence)}
        levels[left.pop(0)] = confidence
    return levels


def _together(count: int) -> float:
    """The confidence of each of so many intervals that hold together with 95% (Bonferroni)."""
    return 1 - (1 - CONFIDENCE) / max(1, count)


def _is(several: Sequence[Any]) -> str:
    return "is" if len(several) == 1 else "are"


def _lost(points: float) -> str:
    return f"it loses {points:.2f} points" if points >= 0 else f"it gains {-points:.2f} points"


def _at_most(interval: Interval | None, margin: float) -> bool | None:
    """Whether a value is at most its margin, by its interval."""
    if interval is None:
        return None
    return True if interval[1] <= margin else False if interval[0] > margin else None


def _round(value: float) -> int:
    """Up, to two digits."""
    step = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(math.ceil(value / step) * step)


def _at(place: Place) -> str:
    return f"at batch {place[1]} on {place[0]}"


def _found(claim: Summary, unit: str) -> str:
    """A claim's value with its interval."""
    if claim["value"] is None or claim["interval"] is None:
        return "not known"
    digits = 2 if unit == "points" else 3
    value, low, high = (f"{v:.{digits}f}" for v in (claim["value"], *claim["interval"]))
    return f"{value} {unit}, {low} to {high}"


def _times(value: float, interval: Interval | Sequence[float] | None) -> str:
    """A ratio with its interval, as many digits as tell its bounds apart."""
    if interval is None:
        return f"{value:.2f} times (no interval)"
    digits = 3 if 0.95 < interval[0] < 1.05 else 2 if interval[1] < 10 else 1
    return f"{value:.{digits}f} times ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _doubt(row: Summary) -> str:
    if row.get("calm") is False:
        return f" (the machine was not calm: {row['disturbed_rounds']} of {row['rounds']} rounds were disturbed)"
    return ""
