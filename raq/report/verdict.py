"""Which candidate to ship: decided by what was shown, place by place, or not at all. Neither torch nor ray.

A place is a device and a batch size. Requirements and equivalence are tested with margins (non-inferiority, two
one-sided tests: Schuirmann 1987), on the intervals that are printed: a claim holds if its whole interval is on the
right side of its margin, does not if all of it is on the other side, and is not known otherwise. The intervals of
claims that are made of several candidates at once hold together with 95% confidence (Bonferroni). The point estimates
alone decide nothing: they choose which comparison is made.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raq.bench.statistics import CONFIDENCE, Interval, Ratios, calm_ratios, paired_ratio
from raq.experiment import BASELINE

Summary = dict[str, Any]
Place = tuple[str, int]
SAME_SIZE = 0.01  # weights that differ by less are equally large
WORK = {"fp32": 0, "ptq": 1, "qat": 2}  # what making a candidate takes, of candidates that are otherwise alike
MOST_TIMES = 100  # so much more evidence is not asked for: the two lie at the margin


@dataclass(frozen=True)
class Rules:
    """What the experiment asks. max_drop, accuracy_margin: points; speed_margin: a share; batch_size: that decides."""

    max_drop: float
    accuracy_margin: float = 0.3
    speed_margin: float = 0.02
    batch_size: int | None = None
    then: str = "latency"

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rules":
        """From the settings of a run; what an older run does not say is as by default."""
        sweep = settings.get("sweep") or {}
        asked: dict[str, Any] = {"max_drop": settings["require"]["max_drop"]}
        if select := settings.get("select"):
            asked["accuracy_margin"] = select["margin"]["accuracy"]
            asked["speed_margin"] = select["margin"]["speed"]
            asked["batch_size"] = select["batch_size"]
        if sweep.get("layers"):
            asked["then"] = sweep["select"]["then"]
        return cls(**asked)


Drop = Callable[[str, str, float], tuple[float, Interval] | None]
"""Points of top-1 that the second candidate loses against the first, with an interval of this confidence; None where it
is not known."""


@dataclass(frozen=True)
class Option:
    """A candidate at a place: its fastest row there."""

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
    """The row whose time is the lowest, by the ratios within rounds."""
    return min(rows, key=lambda row: paired_ratio(row_ratios(row, rows[0]))[0], default=None)


def _rows_at(candidate: Summary, place: Place) -> list[Summary]:
    return [row for row in candidate["latency"] if (row["device"], row["batch_size"]) == place]


def verdict(
    candidates: Sequence[Summary], rules: Rules, drop: Drop, elapsed_s: Mapping[str, float | None] | None = None
) -> Summary:
    """The choice, why in words, every claim it rests on, and the choice at every place.

    candidates: of a summary, the baseline first. elapsed_s: by device, how long was measured.
    """
    return _Judge(candidates, rules, drop, elapsed_s or {}).judge()


class _Judge:
    """The claims as they are made, and what they come to."""

    def __init__(
        self, candidates: Sequence[Summary], rules: Rules, drop: Drop, elapsed_s: Mapping[str, float | None]
    ) -> None:
        self.candidates = candidates
        self.rules = rules
        self.drop = drop
        self.elapsed_s = elapsed_s
        self.claims: list[Summary] = []
        self.accurate: dict[str, Summary] = {}

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
        for place in places:
            other, reason = found[place]
            if other is None and found[place] != found[deciding]:
                why += f" {self._cannot_tell(reason, [place])}"
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
        quantized = [c for c in self.candidates[1:] if c["drop_points"] is not None]
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(quantized))
        for candidate in quantized:
            known = self.drop(BASELINE, candidate["name"], confidence)
            value, interval = known or (candidate["drop_points"], None)
            self.accurate[candidate["name"]] = self._claim(
                f"{candidate['name']} loses at most {self.rules.max_drop:g} points of top-1",
                value, interval, self.rules.max_drop, _at_most(interval, self.rules.max_drop),
            )  # fmt: skip

    def _admissible(self, option: Option) -> bool | None:
        """Whether a candidate loses no more than it may."""
        if option.name == BASELINE:
            return True
        holds: bool | None = self.accurate[option.name]["holds"]
        return holds

    def _judge_place(self, place: Place) -> tuple[str | None, str]:
        """The choice at a place, and why; without one, the reason."""
        options = [option for c in self.candidates if (option := self._option(c, place)) is not None]
        plain = best_fp32(self.candidates, place)
        if plain is not None:
            for option in options:
                if option.name != BASELINE:
                    self._compare_with_fp32(option, plain, place)
        open_ones = [option for option in options if self._admissible(option) is not False]
        able = [option for option in open_ones if self._admissible(option)]
        if not able:
            return None, "FP32 has not been measured there."
        if self.rules.then == "size":
            best = min(able, key=lambda o: (o.weight_bytes, WORK.get(o.candidate["kind"], 1)))
            smaller = [o for o in open_ones if o not in able and o.weight_bytes < (1 - SAME_SIZE) * best.weight_bytes]
            if smaller:
                return None, self._unproven(smaller[0], "is smaller")
            equals = [o for o in able if o is not best and o.weight_bytes < (1 + SAME_SIZE) * best.weight_bytes]
        else:
            first = fastest([option.row for option in able])
            best = next(option for option in able if option.row is first)
            rivals = [option for option in open_ones if option is not best]
            confidence = 1 - (1 - CONFIDENCE) / max(1, len(rivals))
            shown = {rival.name: self._compare_speed(best, rival, place, confidence) for rival in rivals}
            unsure = [rival for rival in rivals if shown[rival.name][0]["holds"] is not True]
            if unsure:
                unproven = [rival for rival in unsure if not self._admissible(rival)]
                rival = (unproven or unsure)[0]
                reason = (
                    self._unproven(rival, "is faster" if shown[rival.name][0]["holds"] is False else "may be faster")
                    if unproven
                    else self._too_close(best, rival, shown[rival.name][0], place)
                )
                return None, reason
            equals = [rival for rival in rivals if rival in able and shown[rival.name][1]["holds"]]
        return self._of_equals(best, equals, able, place)

    def _option(self, candidate: Summary, place: Place) -> Option | None:
        rows = _rows_at(candidate, place)
        if candidate["name"] != BASELINE:
            rows = [row for row in rows if row["runtime"] != "eager"]
        row = fastest(rows)
        known = candidate["name"] == BASELINE or candidate["name"] in self.accurate
        return Option(candidate, row) if row is not None and known and candidate["artifacts"] else None

    def _compare_with_fp32(self, option: Option, plain: Summary, place: Place) -> None:
        """Whether a candidate is faster than the fastest FP32 there is."""
        value, interval = paired_ratio(row_ratios(plain, option.row))
        holds = None if interval is None else True if interval[0] > 1 else False if interval[1] < 1 else None
        self._claim(
            f"{option.name} is faster than the best FP32, {plain['candidate']}/{plain['runtime']}, {_at(place)}",
            value, interval, 1.0, holds,
        )  # fmt: skip

    def _compare_speed(self, best: Option, rival: Option, place: Place, confidence: float) -> tuple[Summary, Summary]:
        """Whether a rival is no more than the margin faster than the best; and whether it is no more slower either."""
        margin = self.rules.speed_margin
        value, interval = paired_ratio(row_ratios(best.row, rival.row), confidence)
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
        return not_faster, not_slower

    def _of_equals(
        self, best: Option, equals: Sequence[Option], able: Sequence[Option], place: Place
    ) -> tuple[str | None, str]:
        """Of options that are as fast as one another: the cheapest that is not less accurate than another of them."""
        smallest = min(option.weight_bytes for option in (best, *equals))

        def cost(option: Option) -> tuple[int, int]:
            larger = option.weight_bytes > (1 + SAME_SIZE) * smallest
            return (option.weight_bytes if larger else smallest), WORK.get(option.candidate["kind"], 1)

        group = sorted((best, *equals), key=cost)
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(group) - 1)
        unsure: Summary | None = None
        for option in group:
            made = [self._compare_accuracy(option, other, confidence) for other in group if other is not option]
            if all(claim["holds"] for claim in made):
                return option.name, self._ship(option, [o for o in group if o is not option], able, place)
            unsure = unsure or next(claim for claim in made if not claim["holds"])
        assert unsure is not None
        names = " and ".join(option.name for option in group)
        alike = "equally small" if self.rules.then == "size" else "equally fast"
        return None, (
            f"{names} are {alike}, and which is more accurate is not "
            f"known within {self.rules.accuracy_margin:g} points ({unsure['claim']}: {_found(unsure, 'points')})"
            f"{self._images(unsure)}; or accept a larger select.margin.accuracy."
        )

    def _compare_accuracy(self, option: Option, other: Option, confidence: float) -> Summary:
        """Whether one option loses no more than the margin against another."""
        known = self.drop(other.name, option.name, confidence)
        value, interval = known or (None, None)
        margin = self.rules.accuracy_margin
        text = f"{option.name} loses at most {margin:g} points against {other.name}"
        return self._claim(text, value, interval, margin, _at_most(interval, margin))

    def _ship(self, option: Option, equals: Sequence[Option], able: Sequence[Option], place: Place) -> str:
        plain = best_fp32(self.candidates, place)
        row = option.row
        parts = []
        if option.name != BASELINE:
            smaller = 1 - option.weight_bytes / self.candidates[0]["artifacts"][0]["weight_bytes"]
            parts.append(f"{100 * smaller:.0f}% smaller in weights")
        if plain is not None and option.name != BASELINE:
            over = f"{plain['candidate']}/{plain['runtime']}"
            value, interval = paired_ratio(row_ratios(plain, row))
            parts.append(f"{_times(value, interval)} as fast as the best FP32 ({over})")
            if over != row["baseline"]:
                parts.append(f"{_times(row['speedup'], row['speedup_interval'])} as fast as {row['baseline']}")
        elif option.contender != row["baseline"]:
            parts.append(f"{_times(row['speedup'], row['speedup_interval'])} as fast as {row['baseline']}")
        said = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
        text = f"Ship {option.name}: {said}{', ' if said else ''}{_at(place)}{_doubt(row)}"
        if option.name != BASELINE:
            claim = self.accurate[option.name]
            text += (
                f"; it loses {claim['value']:.2f} points of top-1 ({claim['interval'][0]:.2f} to "
                f"{claim['interval'][1]:.2f}; allowed: {claim['margin']:g})"
            )
        elif len(able) == 1 and len(self.candidates) > 1:
            text += "; no quantized candidate may be shipped"
        if equals:
            names = " and ".join(other.name for other in equals)
            smallest = all(option.weight_bytes < (1 - SAME_SIZE) * other.weight_bytes for other in equals)
            cheap = "is the smaller" if smallest else "takes less to make"
            work = [WORK.get(o.candidate["kind"], 1) for o in (option, *equals)]
            better = smallest or work[0] < min(work[1:])
            margins = f"{self.rules.accuracy_margin:g} points"
            if self.rules.then != "size":
                margins = f"{100 * self.rules.speed_margin:g}% in speed and {margins}"
            if better:
                text += f"; equivalent to {names} within {margins}, and {option.name} {cheap}"
            else:
                text += f"; as fast as {names}, and not less accurate"
        return text + "."

    def _not_chosen(self, choice: str | None) -> list[str]:
        """Candidates that lose too much, may lose too much, are slower than FP32 somewhere, or were not measured."""
        lines = []
        for name, claim in self.accurate.items():
            if claim["holds"] is False:
                lines.append(f"{name} loses more than {claim['margin']:g} points ({_found(claim, 'points')}).")
            elif claim["holds"] is None and choice is not None:
                lines.append(f"{name} may lose more than {claim['margin']:g} points ({_found(claim, 'points')}).")
        for claim in self.claims:
            if " is faster than the best FP32, " in claim["claim"] and claim["holds"] is False:
                told = claim["claim"].replace(" is faster than the best FP32, ", " is slower than the best FP32, ")
                lines.append(f"{told}: {_times(claim['value'], claim['interval'])} its speed.")
        unmeasured = [c["name"] for c in self.candidates if c.get("not_lowered")]
        if unmeasured:
            lines.append(f"{', '.join(unmeasured)}: not lowered here, so not measured.")
        return lines

    def _unproven(self, option: Option, better: str) -> str:
        """That a candidate that may be better is not known to lose no more than it may."""
        claim = self.accurate[option.name]
        return (
            f"{option.name} {better}, and whether it loses at most {claim['margin']:g} points of top-1 is not "
            f"known ({_found(claim, 'points')}){self._images(claim)}."
        )

    def _images(self, claim: Summary) -> str:
        """How many test images it would take, about."""
        images = next((c["test_images"] for c in self.candidates if c["test_images"]), None)
        if images is None or claim["interval"] is None:
            return ""
        factor = _factor(claim["value"], claim["interval"], claim["margin"])
        if factor is None:
            return f"; it lies too near the margin for {images} test images, or {MOST_TIMES} times as many"
        return f"; it takes about {_round(images * factor)} test images, and {images} are there"

    def _too_close(self, best: Option, rival: Option, claim: Summary, place: Place) -> str:
        """That two speeds cannot be told apart, nor called equivalent."""
        compared = f"{rival.contender} and {best.contender}"
        if claim["interval"] is None:
            return (
                f"the speed of {compared} has no interval, as {len(set(best.row.get('round_launch', [0])))} launches "
                "are too few for one; raise bench.budget_s (or bench.rounds), and measure interleaved."
            )
        margin = 100 * self.rules.speed_margin
        text = (
            f"whether {rival.contender} is more than {margin:g}% faster than {best.contender} is not known "
            f"({_found(claim, 'times its speed')})"
        )
        logs = [math.log(v) for v in (claim["value"], *claim["interval"], claim["margin"])]
        factor = _factor(logs[0], (logs[1], logs[2]), logs[3])
        elapsed_s = self.elapsed_s.get(place[0])
        if factor is None:
            return f"{text}; it lies too near the margin to be told in {MOST_TIMES} times as long."
        if elapsed_s is None:
            return f"{text}; it takes about {factor:.1f} times as long."
        wanted_s = _round(elapsed_s * factor)
        return f"{text}; it takes about {wanted_s / 60:.0f} minutes of measuring (bench.budget_s: {wanted_s})."


def _at_most(interval: Interval | None, margin: float) -> bool | None:
    """Whether a value is at most its margin, by its interval."""
    if interval is None:
        return None
    return True if interval[1] <= margin else False if interval[0] > margin else None


def _factor(value: float, interval: Interval, margin: float) -> float | None:
    """How many times the evidence it would take, if an interval narrows with its root; None if more than 100 times."""
    half = interval[1] - value if value < margin else value - interval[0]
    room = abs(margin - value)
    return None if room * math.sqrt(MOST_TIMES) <= half else (half / room) ** 2


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
    digits = 2 if interval[1] < 10 else 1
    return f"{value:.{digits}f} times ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _doubt(row: Summary) -> str:
    if row.get("calm") is False:
        return f" (the machine was not calm: {row['disturbed_rounds']} of {row['rounds']} rounds were disturbed)"
    return ""
