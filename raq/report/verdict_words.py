"""The sentences of a verdict: what is shipped and why, or what is not known and what it takes.

Neither torch nor ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raq.bench.ratio_statistics import MIN_LAUNCHES, paired_ratio
from raq.experiment.schema import BASELINE
from raq.report.claims import Claim, Measured, Rules, images_needed, measuring_needed, rounded_up
from raq.report.options import Option, artifact_of
from raq.report.ratios import Place, baseline_row, best_fp32, row_ratios, shared_rounds
from raq.report.types import Artifact, CandidateSummary, ComparedLatency

SMALL_RATIO = 0.1


@dataclass(frozen=True)
class Sentences:
    """What they are of. accurate: by candidate, that it loses no more than it may; measured: by device."""

    candidates: Sequence[CandidateSummary]
    rules: Rules
    measured: Mapping[str, Measured]
    accurate: Mapping[str, Claim]

    def ship(self, option: Option, equals: Sequence[Option], place: Place) -> str:
        """The sentence of a choice."""
        plain = best_fp32(self.candidates, place)
        assert plain is not None
        row, over = option.row, f"{plain['candidate']}/{plain['runtime']}"
        parts = []
        if not option.fp32:
            parts.append(_smaller(option, artifact_of(self.candidates[0], option.row)))
            best = f"{times(*paired_ratio(row_ratios(plain, row)))} as fast as the best FP32 ({over})"
            parts.append(best + _doubt(plain, row))
        if option.contender != row["baseline"] and (option.fp32 or over != row["baseline"]):
            doubt = _doubt(baseline_row(self.candidates, row), row)
            parts.append(f"{times(row['speedup'], row['speedup_interval'])} as fast as {row['baseline']}{doubt}")
        if option.contender == f"{BASELINE}/eager":
            parts.append("in eager mode, as its compiled artifact is not faster")
        way = row["runtime"].split("+")
        if "graph" in way:
            parts.append("called as a CUDA graph")
        if "tf32" in way:
            parts.append("in TF32, in which its accuracy was not measured")
        said = listed(parts)
        text = f"Ship {option.name}: {said}{', ' if said else ''}{at(place)}"
        return text + self._accuracy_of(option) + self._alike(option, equals) + "."

    def _accuracy_of(self, option: Option) -> str:
        """What a choice loses; of FP32, what the others do."""
        if not option.fp32:
            claim = self.accurate[option.name]
            assert claim.value is not None
            assert claim.interval is not None
            form = ".2f" if self.rules.metric.in_points else ".3g"
            lost, low, high = (format(value, form) for value in (abs(claim.value), *claim.interval))
            of = self.rules.amount(0).removeprefix("0")
            drop, at_once = "drop: " if claim.value < 0 else "", ""
            if len(self.accurate) > 1:
                at_once = ", all candidates at once"
            verb = "loses" if claim.value >= 0 else "gains"
            return f"; it {verb} {lost}{of} ({drop}{low} to {high}{at_once}; allowed: {claim.margin:g})"
        if not self.accurate or any(claim.holds for claim in self.accurate.values()):
            return ""
        refused = all(claim.holds is False for claim in self.accurate.values())
        return "; no other candidate " + ("may be shipped" if refused else "is shown to keep within max_drop")

    def _alike(self, option: Option, equals: Sequence[Option]) -> str:
        """What the others of a group of equals are, and why it is this one."""
        if not equals:
            return ""
        names, size = " and ".join(other.name for other in equals), self.rules.then == "size"
        if not all(option.cheaper_than(other) for other in equals):
            return f"; as {'small' if size else 'fast'} as {names}, and not less accurate"
        speed = "" if size else f"{100 * self.rules.speed_margin:g}% in speed and "
        why = "is the smaller" if all(option.smaller_than(other) for other in equals) else "takes less to make"
        within = f"within {speed}{self.rules.short(self.rules.accuracy_margin)}"
        return f"; equivalent to {names} {within}, and {option.name} {why}"

    def limits_by_device(self, choices: Mapping[Place, str | None]) -> list[str]:
        """What is not so, on a device, of what is to be shipped there: its arithmetic, or where it was evaluated."""
        lines = []
        for device, name in dict.fromkeys((place[0], choice) for place, choice in choices.items() if choice):
            made = next((c for c in self.candidates if c["name"] == name), None)
            here = [a for a in (made["artifacts"] if made else ()) if a.get("target") == device]
            if any(a.get("note") for a in here):
                lines.append(f"On {device} {name} computes in floats: what it gains is the compiler's, not int8's.")
            if any(a.get("is_evaluated") is False for a in here):
                lines.append(f"The accuracy of {name} was not measured on {device}.")
        return lines

    def not_chosen(self, choice: str | None) -> list[str]:
        """Candidates that lose too much or may, and those that were not measured."""
        lines = []
        for holds, one, several in ((False, "loses", "lose"), (None, "may lose", "may lose")):
            claims = {name: claim for name, claim in self.accurate.items() if claim.holds is holds}
            if claims and (holds is False or choice is not None):
                margin = next(iter(claims.values())).margin
                if len(claims) == 1:
                    ((name, claim),) = claims.items()
                    lines.append(f"{name} {one} more than {self.rules.short(margin)} ({claim.found(self.rules.unit)}).")
                else:
                    named = listed([f"{name} ({claim.found(self.rules.unit)})" for name, claim in claims.items()])
                    lines.append(f"{named} {several} more than {self.rules.short(margin)}.")
        unmeasured = [c["name"] for c in self.candidates if c.get("not_lowered")]
        if unmeasured:
            lines.append(f"{', '.join(unmeasured)}: not lowered here, so not measured.")
        return lines

    def left_aside(self, why: str, worse: Mapping[str, tuple[str, Claim]]) -> str:
        """Why PTQ is shipped, and that QAT, which is worse, is not."""
        said = [f"{name} is worse than {ptq} ({claim.found(self.rules.unit)}), so it is left aside."
                for name, (ptq, claim) in worse.items()]  # fmt: skip
        return " ".join([why, *said])

    def may_be_faster(
        self, best: Option, unsure: Sequence[Option], not_faster: Mapping[str, Claim], place: Place
    ) -> str:
        """Why none can be shipped: every rival that may be faster than the best."""
        unknown = [rival for rival in unsure if not_faster[rival.contender].interval is None]
        reasons = [self._too_few(best, unknown, place)] if unknown else []
        inaccurate = [rival for rival in unsure if not rival.fp32 and not self.accurate[rival.name].holds]
        faster = [rival for rival in inaccurate if not_faster[rival.contender].holds is False]
        maybe = [rival for rival in inaccurate if rival not in faster]
        for group, verb in ((faster, "is faster" if len(faster) == 1 else "are faster"), (maybe, "may be faster")):
            if group:
                reasons.append(self.unproven(group, verb))
        for rival in unsure:
            claim = not_faster[rival.contender]
            if rival not in inaccurate and rival not in unknown:
                reasons.append(
                    f"whether {rival.contender} is more than {100 * self.rules.speed_margin:g}% faster than "
                    f"{best.contender} is not known ({claim.found('times its speed')}){self._longer(claim, place)}"
                )
        return "; ".join(reasons) + "."

    def hanging(
        self, best: Option, more: Sequence[Option], not_slower: Mapping[str, Claim], otherwise: str, place: Place
    ) -> str:
        """Why none can be shipped: what is not known of these rivals would change the choice. otherwise: to what."""
        claim = not_slower[more[0].contender]
        names, verb = " and ".join(option.contender for option in more), "is" if len(more) == 1 else "are"
        return (
            f"whether {names} {verb} at most {100 * self.rules.speed_margin:g}% slower than {best.contender} is not "
            f"known ({claim.found('times its speed')}); if so, {otherwise}{self._longer(claim, place)}."
        )

    def unproven(self, options: Sequence[Option], better: str) -> str:
        """That candidates that may be better are not known to lose no more than they may."""
        claims = {option.name: self.accurate[option.name] for option in options}
        unit, amount = self.rules.unit, self.rules.amount(next(iter(claims.values())).margin)
        if len(claims) == 1:
            ((name, claim),) = claims.items()
            return (
                f"{name} {better}, and whether it loses at most {amount} is not known "
                f"({claim.found(unit)}){images_needed(claim)}"
            )
        found = "; ".join(f"{name}: {claim.found(unit)}{images_needed(claim)}" for name, claim in claims.items())
        return f"{listed(list(claims))} {better}, and whether they lose at most {amount} is not known ({found})"

    def _too_few(self, best: Option, rivals: Sequence[Option], place: Place) -> str:
        """That there are too few launches for an interval."""
        count = max(1, min(len(row_ratios(best.row, rival.row)) for rival in rivals))
        few = "1 launch is" if count == 1 else f"{count} launches are"
        measured = self.measured.get(place[0], Measured())
        elapsed_s = measured.elapsed_s
        wanted_s = rounded_up(elapsed_s * MIN_LAUNCHES / count) if elapsed_s else None
        longer = f" (about {wanted_s} s for {MIN_LAUNCHES})" if wanted_s else ""
        interleaved = ", and measure interleaved" if measured.stopped_by == "repetitions" else ""
        return (
            f"the speed of {', '.join(rival.contender for rival in rivals)} and {best.contender} has no interval, as "
            f"{few} too few for one; raise bench.budget_s{longer} or bench.rounds{interleaved}"
        )

    def _longer(self, claim: Claim, place: Place) -> str:
        return measuring_needed(claim, self.measured.get(place[0], Measured()), self.rules)


def listed(names: Sequence[str]) -> str:
    """Names as people list them: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _smaller(option: Option, baseline: Artifact) -> str:
    """How much smaller than FP32's artifact an option is: its weights, and its file where that is not the same."""
    weights, file = (
        1 - own / whole
        for own, whole in (
            (option.weight_bytes, baseline["weight_bytes"]),
            (option.file_bytes, baseline["size_bytes"]),
        )
    )
    said = f"{100 * abs(weights):.0f}% {'smaller' if weights >= 0 else 'larger'} in weights"
    if round(100 * weights) == round(100 * file):
        return said
    same = (weights >= 0) == (file >= 0)
    return f"{said} ({100 * abs(file):.0f}%{'' if same else ' smaller' if file >= 0 else ' larger'} as a file)"


def at(place: Place) -> str:
    """A place in words."""
    return f"at batch {place[1]} on {place[0]}"


def plain_ratio(value: float) -> str:
    """A ratio with two decimals, or two digits that count where those would be zeros."""
    return f"{value:.2g}" if value < SMALL_RATIO else f"{value:.2f}"


def times(value: float, interval: Sequence[float] | None) -> str:
    """A ratio with its interval; a digit more where it is near 1."""
    if interval is None:
        return f"{plain_ratio(value)} times (no interval)"
    if interval[1] < SMALL_RATIO:
        return f"{value:.2g} times ({interval[0]:.2g} to {interval[1]:.2g})"
    digits = 3 if 0.95 < interval[0] < 1.05 else 2 if interval[1] < 10 else 1
    return f"{value:.{digits}f} times ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _doubt(one: ComparedLatency | None, other: ComparedLatency) -> str:
    """What is wrong with the rounds that the ratio of two rows is of, in brackets."""
    rounds = None if one is None else shared_rounds(one, other)
    return f" ({rounds.doubt})" if rounds is not None and rounds.doubt else ""
