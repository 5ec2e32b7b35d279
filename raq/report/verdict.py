"""Which candidate to ship: decided by claims that were shown, place by place, or not at all. Neither torch nor ray.

A place is a device and a batch size. The point estimates alone decide nothing: they choose which comparisons are made.
The rules in full: experiments/README.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from raq.bench.ratio_statistics import paired_ratio
from raq.experiment.schema import BASELINE
from raq.report.claims import (
    Claim,
    Drops,
    Measured,
    Rules,
    at_least,
    at_most,
    drop_claim,
    images_needed,
    ratio_claim,
    step_down,
)
from raq.report.options import Option, options_at
from raq.report.ratios import Place, best_fp32, fastest, row_ratios
from raq.report.types import CandidateSummary, ComparedLatency, PlaceChoice, Verdict
from raq.report.verdict_words import Sentences, at, times
from raq.report.worth import worse_than_ptq
from raq.statistics.proportions import together


@dataclass(frozen=True)
class Decision:
    """The choice at a place, why, or without one the reason; and the claims about accuracy that it took."""

    choice: str | None
    why: str
    claims: tuple[Claim, ...] = ()


def verdict(
    candidates: Sequence[CandidateSummary], rules: Rules, drops: Drops, measured: Mapping[str, Measured] | None = None
) -> Verdict:
    """The choice, why in words, every claim it rests on, and the choice at every place.

    candidates: of a summary, the baseline first. measured: by device.
    """
    return _Judge(candidates, rules, drops, measured or {}).judge()


class _Judge:
    """The claims as they are made, and what they come to."""

    def __init__(
        self, candidates: Sequence[CandidateSummary], rules: Rules, drops: Drops, measured: Mapping[str, Measured]
    ) -> None:
        self.candidates = candidates
        self.rules = rules
        self.drops = drops
        self.claims: list[Claim] = []
        self.below_ptq: dict[tuple[str, str], Claim] = {}  # of (qat, ptq): that it is not worse
        self.accurate = self._judge_accuracy()
        self.words = Sentences(candidates, rules, measured, self.accurate)
        self.slower: list[str] = []  # sentences: who is slower than FP32, and where

    def judge(self) -> Verdict:
        """See `verdict`."""
        baseline = self.candidates[0] if self.candidates else None
        keys = {(row["device"], row["batch_size"]) for c in self.candidates for row in c["latency"]}
        places = sorted(keys, key=self._order)
        if baseline is None or not places or not baseline["artifacts"]:
            why = "Cannot tell which to ship: no candidate has been lowered, evaluated and measured."
            return {"choice": None, "why": why, "claims": [], "choices": []}
        found: dict[Place, Decision] = {}
        for place in places:
            found[place] = self._judge_place(place)
            self.claims += found[place].claims
        deciding = found[self._deciding(places)]
        sentences = [self._said(deciding, found)]
        for place, decision in found.items():
            if decision.choice is None:
                sentences.append(self._said(decision, found))
            elif decision.choice != deciding.choice:
                sentences.append(f"{at(place).capitalize()}, ship {decision.choice}.")
        sentences += self.words.limits_by_device({place: decision.choice for place, decision in found.items()})
        why = " ".join(dict.fromkeys([*sentences, *self.slower, *self.words.not_chosen(deciding.choice)]))
        choices: list[PlaceChoice] = [
            {"device": d, "batch_size": b, "choice": one.choice} for (d, b), one in found.items()
        ]
        return {
            "choice": deciding.choice, "why": why, "claims": [claim.plain() for claim in self.claims],
            "choices": choices,
        }  # fmt: skip

    @staticmethod
    def _said(decision: Decision, found: Mapping[Place, Decision]) -> str:
        """The sentence of a decision; without a choice, with all places that have none for the same reason."""
        if decision.choice is not None:
            return decision.why
        alike = [place for place, other in found.items() if (other.choice, other.why) == (None, decision.why)]
        where = " and ".join(at(place) for place in sorted(alike, reverse=True))
        return f"Cannot tell which to ship {where}: {decision.why}"

    def _order(self, place: Place) -> tuple[int, int]:
        devices = list(dict.fromkeys(row["device"] for c in self.candidates for row in c["latency"]))
        return devices.index(place[0]), place[1]

    def _deciding(self, places: Sequence[Place]) -> Place:
        """The place whose choice is the run's: on the first device, `select.batch_size`, else the largest."""
        here = [place for place in places if place[0] == places[0][0]]
        wanted = [place for place in here if place[1] == self.rules.batch_size]
        return (wanted or here)[-1]

    def _judge_accuracy(self) -> dict[str, Claim]:
        """What each quantized candidate loses against FP32, all of them at once."""
        margin = self.rules.max_drop
        accurate = step_down(
            {
                c["name"]: partial(
                    drop_claim, f"{c['name']} loses at most {self.rules.amount(margin)}",
                    self.drops(BASELINE, c["name"]), margin,
                )
                for c in self.candidates
                if c["latency"] and c["kind"] != BASELINE
            }
        )  # fmt: skip
        self.claims += accurate.values()
        return accurate

    def _admissible(self, option: Option) -> bool | None:
        """Whether a candidate loses no more than it may."""
        return True if option.fp32 else self.accurate[option.name].holds

    def _judge_place(self, place: Place) -> Decision:
        plain = best_fp32(self.candidates, place)
        if plain is None:
            return Decision(None, "FP32 has not been measured there.")
        options = [option for c in self.candidates for option in options_at(c, place)]
        slower = self._compare_with_fp32(options, plain, place)
        candidates = [o for o in options if self._admissible(o) is not False and o.name not in slower]
        before = list(self.claims)
        first, kept = self._decide(candidates, place), self.claims
        worse = worse_than_ptq([o for o in candidates if self._admissible(o)], self.drops, self.below_ptq)
        if not worse or first.choice not in {None, *worse}:
            return first
        self.claims = before
        again = self._decide([o for o in candidates if o.name not in worse], place)
        if again.choice not in {ptq for ptq, _ in worse.values()}:  # PTQ is no alternative
            self.claims = kept
            return first
        self.claims += [claim for _, claim in worse.values() if claim not in self.claims]
        return Decision(again.choice, self.words.left_aside(again.why, worse), again.claims)

    def _decide(self, candidates: Sequence[Option], place: Place) -> Decision:
        able = [option for option in candidates if self._admissible(option)]
        if self.rules.then == "size":
            return self._smallest(candidates, able, place)
        return self._fastest(candidates, able, place)

    def _fastest(self, candidates: Sequence[Option], able: Sequence[Option], place: Place) -> Decision:
        """The choice where speed decides: of the fastest that may be shipped, and those as fast as it."""
        best = self._best(able)
        rivals = [option for option in candidates if option.name != best.name]
        not_faster, not_slower = self._compare_speed(best, rivals, place)
        unsure = [rival for rival in rivals if not not_faster[rival.contender].holds]
        if unsure:
            return Decision(None, self.words.may_be_faster(best, unsure, not_faster, place))
        unproven = [
            r for r in rivals
            if r not in able and not_slower[r.contender].holds is not False and r.smaller_than(best)
        ]  # fmt: skip
        if unproven and best.fp32:
            better = "may be as fast and is smaller" if len(unproven) == 1 else "may be as fast and are smaller"
            return Decision(None, self.words.unproven(unproven, better) + ".")
        equal = [r for r in rivals if r in able and not_slower[r.contender].holds]
        perhaps = [r for r in rivals if r in able and not_slower[r.contender].holds is None]
        decision = self._of_equals(best, equal, place)
        for more in [*([one] for one in perhaps), perhaps]:  # the choice must not hang on what is not known
            other = self._of_equals(best, [*equal, *more], place)
            if other.choice != decision.choice:
                otherwise = other.why.rstrip(".") if other.choice is None else f"{other.choice} would be the choice"
                return Decision(None, self.words.hanging(best, more, not_slower, otherwise, place), decision.claims)
        return decision

    def _best(self, able: Sequence[Option]) -> Option:
        """The fastest of these by its estimate; one that is shown to be faster by more than the margin beats that."""
        first = fastest([option.row for option in able])
        best = next(option for option in able if option.row is first)
        for option in able:
            shared = row_ratios(best.row, option.row) if option.name != best.name else []
            interval = paired_ratio(shared)[1] if shared else None
            if interval is not None and interval[0] > 1 + self.rules.speed_margin:
                best = option
        return best

    def _smallest(self, candidates: Sequence[Option], able: Sequence[Option], place: Place) -> Decision:
        """The choice where size decides: of the smallest that may be shipped, and those as small as it."""
        best = min(able, key=lambda o: (o.weight_bytes, o.work, o.row["p50_ms"]))
        smaller = [option for option in candidates if option not in able and option.smaller_than(best)]
        if smaller:
            better = "is smaller" if len(smaller) == 1 else "are smaller"
            return Decision(None, self.words.unproven(smaller, better) + ".")
        alike = [o for o in able if o.name != best.name and not best.smaller_than(o)]
        return self._of_equals(best, alike, place)

    def _compare_with_fp32(self, options: Sequence[Option], plain: ComparedLatency, place: Place) -> set[str]:
        """Claim that each quantized candidate is faster than FP32, in every runtime; those that are shown not to be."""
        slower = set()
        quantized = [option for option in options if not option.fp32]
        for other in (option for option in options if option.fp32):
            best = "the best FP32, " if other.row["round_p50_ms"] is plain["round_p50_ms"] else ""
            whom = f"{best}{other.contender}, {at(place)}"
            made = step_down(
                {
                    option.name: partial(
                        ratio_claim, f"{option.name} is faster than {whom}", row_ratios(other.row, option.row), 1.0,
                        test=at_least,
                    )
                    for option in quantized
                }
            )  # fmt: skip
            self.claims += made.values()
            for name, claim in made.items():
                if claim.holds is False:
                    assert claim.value is not None
                    slower.add(name)
                    self.slower.append(f"{name} is slower than {whom}: {times(claim.value, claim.interval)} its speed.")
        return slower

    def _compare_speed(
        self, best: Option, rivals: Sequence[Option], place: Place
    ) -> tuple[dict[str, Claim], dict[str, Claim]]:
        """Of each rival: that it is no more than the margin faster than the best, and that it is no more slower."""
        margin = 1 + self.rules.speed_margin
        percent = f"{100 * self.rules.speed_margin:g}%"
        ratios = {rival.contender: row_ratios(best.row, rival.row) for rival in rivals}

        def made(contender: str, confidence: float) -> Claim:
            text = f"{contender} is at most {percent} faster than {best.contender} {at(place)}"
            return ratio_claim(text, ratios[contender], margin, confidence, at_most)

        not_faster = step_down({contender: partial(made, contender) for contender in ratios})
        not_slower = {
            contender: ratio_claim(
                f"{contender} is at most {percent} slower than {best.contender} {at(place)}",
                ratios[contender], 1 / margin, claim.confidence, at_least,
            )
            for contender, claim in not_faster.items()
        }  # fmt: skip
        self.claims += [claim for pair in zip(not_faster.values(), not_slower.values(), strict=True) for claim in pair]
        return not_faster, not_slower

    def _of_equals(self, best: Option, equals: Sequence[Option], place: Place) -> Decision:
        """Of options that are alike: the cheapest that is not less accurate than another of them."""
        group = list({option.name: option for option in (*equals, best)}.values())
        smallest = min(group, key=lambda option: option.weight_bytes)
        group.sort(key=lambda o: (o.weight_bytes if smallest.smaller_than(o) else smallest.weight_bytes, o.work))
        margin, alike = self.rules.accuracy_margin, "small" if self.rules.then == "size" else "fast"
        made = {
            option.name: [
                drop_claim(
                    f"{option.name}, as {alike} as {other.name} {at(place)}, loses at most "
                    f"{self.rules.short(margin)} against it",
                    self.drops(other.name, option.name), margin, together(len(group) - 1),
                )
                for other in group
                if other is not option and not (option.fp32 and other.fp32)
            ]
            for option in group
        }  # fmt: skip
        claims = tuple(claim for several in made.values() for claim in several)
        for option in group:
            if all(claim.holds for claim in made[option.name]):
                others = [other for other in group if other is not option]
                return Decision(option.name, self.words.ship(option, others, place), claims)
        still = [o for o in group if all(claim.holds is not False for claim in made[o.name])]
        names = " and ".join(option.name for option in (still if len(still) > 1 else group))
        unsure = next((claim for claim in claims if claim.holds is None), None)
        if unsure is None:
            return Decision(None, f"each of {names} is less accurate than another of them.", claims)
        return Decision(
            None,
            f"{names} are equally {alike}, and which is more accurate is not known within "
            f"{self.rules.short(margin)} ({unsure.text}: {unsure.found(self.rules.unit)}){images_needed(unsure)}; "
            "or accept a larger select.margin.accuracy.",
            claims,
        )
