"""Claims: a value with its interval, and whether it keeps within a margin; several at once; what would settle one.

A claim holds if its whole interval is on the right side of its margin, does not if all of it is on the other side, and
is undecided otherwise. One such claim is a test of non-inferiority; two are one of equivalence (Schuirmann 1987).
Neither torch nor ray.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from raq.bench.ratio_statistics import Ratios, launches_factor, paired_ratio
from raq.errors import UserError
from raq.experiment.measurement import Margin
from raq.experiment.metric import POINTS, Metric, amount
from raq.report.types import PlainClaim
from raq.statistics.paired import Paired
from raq.statistics.proportions import CONFIDENCE, Interval, together

MAX_TIMES = 100  # if even so much more data would not decide a claim, it is said to lie too near the margin
Drops = Callable[[str, str], Paired | None]
"""drops(a, b): how much worse b is than a, on the same test samples; None if unknown."""


@dataclass(frozen=True)
class Rules:
    """The rules of an experiment's verdict. max_drop, accuracy_margin: points, or in the metric's unit; speed_margin: a
    share; batch_size: the one that decides, None: the largest; then: what decides among those that keep within
    max_drop, latency or size.

    precision, budget_s: of its bench, None where a run does not say.
    """

    max_drop: float
    accuracy_margin: float = Margin().accuracy
    speed_margin: float = Margin().speed
    batch_size: int | None = None
    then: str = "latency"
    precision: float | None = None
    budget_s: float | None = None
    metric: Metric = field(default_factory=Metric)

    @property
    def unit(self) -> str:
        """What drops are in."""
        return POINTS if self.metric.in_points else self.metric.unit

    def amount(self, drop: float) -> str:
        """A drop in words: 1 points of top-1."""
        unit = f" {self.unit}" if self.unit else ""
        return f"{drop:g}{unit} of {self.metric.name}"

    def short(self, drop: float) -> str:
        """A drop in words, where the metric has been named."""
        return amount(self.metric, drop)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "Rules":
        """From the settings of a run; what an older run does not say is as by default."""
        asked: dict[str, Any] = {"max_drop": settings["require"]["max_drop"]}
        if select := settings.get("select"):
            asked["accuracy_margin"] = select["margin"]["accuracy"]
            asked["speed_margin"] = select["margin"]["speed"]
            asked["batch_size"] = select["batch_size"]
        if settings.get("metric"):
            try:
                asked["metric"] = Metric.model_validate(settings["metric"])
            except (ValidationError, TypeError):
                raise UserError(
                    "the run's settings name a metric that is none", "delete the run and run again"
                ) from None
        sweep, bench = settings.get("sweep") or {}, settings.get("bench") or {}
        if sweep.get("select"):
            asked["then"] = sweep["select"]["then"]
        return cls(**asked, precision=bench.get("precision"), budget_s=bench.get("budget_s"))


@dataclass(frozen=True)
class Measured:
    """Seconds that a device was measured, and which limit ended that; None where a record does not say."""

    elapsed_s: float | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class Claim:
    """One sentence, and what was found of it.

    margin: in the value's unit. holds: True, False, or None if undecided. confidence: of the interval. paired: what is
    behind a drop; launches: how many are behind a ratio.
    """

    text: str
    value: float | None
    interval: Interval | None
    margin: float
    holds: bool | None
    confidence: float = CONFIDENCE
    paired: Paired | None = None
    launches: int = 0

    def plain(self) -> PlainClaim:
        """As `raq show --json` prints it."""
        interval = list(self.interval) if self.interval else None
        return {
            "claim": self.text, "value": self.value, "interval": interval, "margin": self.margin, "holds": self.holds
        }  # fmt: skip

    def found(self, unit: str) -> str:
        """The value with its interval, in words."""
        if self.value is None or self.interval is None:
            return "nothing is known of it"
        form = ".2f" if unit == POINTS else ".3g" if self.paired is not None else ".3f"
        value, low, high = (format(v, form) for v in (self.value, *self.interval))
        return f"{value} {unit}, {low} to {high}" if unit else f"{value}, {low} to {high}"


def at_most(interval: Interval | None, margin: float) -> bool | None:
    """Whether a value is at most its margin, by its interval."""
    if interval is None:
        return None
    return True if interval[1] <= margin else False if interval[0] > margin else None


def at_least(interval: Interval | None, margin: float) -> bool | None:
    """Whether a value is at least its margin, by its interval."""
    if interval is None:
        return None
    return True if interval[0] >= margin else False if interval[1] < margin else None


def drop_claim(text: str, paired: Paired | None, margin: float, confidence: float) -> Claim:
    """That a candidate loses no more than the margin."""
    if paired is None:
        return Claim(text, None, None, margin, None, confidence)
    interval = paired.interval(confidence)
    return Claim(text, paired.value, interval, margin, at_most(interval, margin), confidence, paired)


def ratio_claim(
    text: str,
    ratios: Ratios,
    margin: float,
    confidence: float,
    test: Callable[[Interval | None, float], bool | None],
) -> Claim:
    """That a ratio of times is on the right side of the margin, by `at_most` or `at_least`."""
    value, interval = paired_ratio(ratios, confidence) if ratios else (None, None)
    return Claim(text, value, interval, margin, test(interval, margin), confidence, launches=len(ratios))


def step_down(claims: Mapping[str, Callable[[float], Claim]]) -> dict[str, Claim]:
    """Several claims at once, each by name as a function of the confidence: Holm's procedure (Holm 1979).

    The m claims are tested in order of clarity at levels 0.05 / m, 0.05 / (m - 1), and so on. The first undecided claim
    and all later ones keep its level. Clarity is the distance
    from the margin in widths of the interval: an order close to that of p-values, for intervals that are not symmetric.
    """

    def clarity(name: str) -> float:
        """How far the value is from its margin, in widths of its interval."""
        claim = claims[name](CONFIDENCE)
        if claim.value is None or claim.interval is None:
            return 0.0
        return abs(claim.value - claim.margin) / max(claim.interval[1] - claim.interval[0], 1e-12)

    made: dict[str, Claim] = {}
    left = sorted(claims, key=clarity, reverse=True)
    while left:
        confidence = together(len(left))
        claim = claims[left[0]](confidence)
        if claim.holds is None:
            made |= {name: claims[name](confidence) for name in left}
            break
        made[left.pop(0)] = claim
    return {name: made[name] for name in claims}


def images_needed(claim: Claim) -> str:
    """How many test samples would settle a claim about a drop, if they are like those there are; in words."""
    if claim.paired is None:
        return ""
    paired, samples = claim.paired, claim.paired.samples

    def settled(times: float) -> bool:
        return at_most(paired.more(times).interval(claim.confidence), claim.margin) is not None

    if not settled(MAX_TIMES):
        return f"; it lies too near the margin for {samples} test images, or {MAX_TIMES} times as many"
    low, high = 1.0, float(MAX_TIMES)
    for _ in range(20):  # bisection on a logarithmic scale: to far less than the two digits that are said
        middle = math.sqrt(low * high)
        low, high = (low, middle) if settled(middle) else (middle, high)
    return f"; about {rounded_up(samples * high)} test images would decide it, and there are {samples}"


def measuring_needed(claim: Claim, measured: Measured, rules: Rules) -> str:
    """In words: how much longer to measure to decide a claim about a ratio, if launches stay as far apart."""
    assert claim.value is not None
    assert claim.interval is not None
    low, high = claim.interval
    half = math.log(high / claim.value) if claim.value < claim.margin else math.log(claim.value / low)
    room = abs(math.log(claim.margin / claim.value))
    factor = launches_factor(claim.launches, room / max(half, 1e-12), MAX_TIMES)
    if factor is None:
        return f"; it lies too near the margin to be settled in {MAX_TIMES} times as long"
    if measured.stopped_by == "precision" and rules.precision is not None:
        return f"; ask for a smaller bench.precision (about {min(room, 0.9 * rules.precision):.2g})"
    if measured.stopped_by == "rounds":
        return f"; it takes about {factor:.1f} times as many rounds (bench.rounds)"
    if measured.elapsed_s is None:
        return f"; it takes about {factor:.1f} times as long"
    wanted_s = rounded_up(max(measured.elapsed_s * factor, rules.budget_s or 0.0))
    return f"; it takes about {max(1, round(wanted_s / 60))} min of measuring (bench.budget_s: {wanted_s})"


def rounded_up(value: float) -> int:
    """To two digits."""
    step = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return int(math.ceil(value / step) * step)
