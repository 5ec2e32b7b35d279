"""The schema of `metric`: what candidates are judged by, and in which unit. Imports neither torch nor ray."""

import re
from typing import Any, Literal

from pydantic import model_validator

from raq.experiment.fields import Section

METRIC_FUNCTION = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
POINTS = "points"
# by name: whether greater is better, of a sample or of the whole set, unit
BUILT_IN: dict[str, tuple[bool, Literal["sample", "set"], str]] = {
    "top1": (True, "sample", POINTS),
    "top5": (True, "sample", POINTS),
    "mean_iou": (True, "set", POINTS),
    "mse": (False, "sample", ""),
    "cosine": (True, "sample", ""),
}
IN_WORDS = {"top1": "top-1", "top5": "top-5"}
LOSSES = ("cross_entropy", "mse")
# what trains a network that is judged by a metric, where the experiment names no loss
LOSS_OF = {"top1": "cross_entropy", "top5": "cross_entropy", "mean_iou": "cross_entropy", "mse": "mse"}


class Metric(Section):
    """What candidates are judged by: its name alone, or a section."""

    function: str = "top1"
    """top1, top5: shares of right classes; mean_iou: mean intersection over union of classes, of masks [n, H, W];
    mse: mean squared error; cosine: similarity to the target; or module:function: of one sample's (output, target), a
    number, or, with per: set, of all outputs and targets."""
    greater_is_better: bool = True
    """Of module:function; the others know it."""
    per: Literal["sample", "set"] = "sample"
    """Of module:function. sample: called for each sample, and the mean counts; set: called for all samples at once."""
    unit: str = ""
    """Of module:function, for messages."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        """A name alone stands for a section; what is built in knows the rest."""
        own = {"function": given} if isinstance(given, str) else given
        if isinstance(own, dict) and own.get("function", "top1") in BUILT_IN:
            greater, per, unit = BUILT_IN[own.get("function", "top1")]
            known = {"greater_is_better": greater, "per": per, "unit": unit}
            for key, value in known.items():
                if own.get(key, value) != value:
                    raise ValueError(f"{key} of {own.get('function', 'top1')} is {value!r}: leave it out")
            return {**own, **known}
        return own

    @model_validator(mode="after")
    def _check(self) -> "Metric":
        if self.function not in BUILT_IN and not re.match(METRIC_FUNCTION, self.function):
            raise ValueError(
                f"function: there is no metric {self.function!r}; allowed: {', '.join(BUILT_IN)}, module:function"
            )
        if not self.is_built_in and self.unit == POINTS:
            raise ValueError(f"unit: {POINTS} are hundredths of a share, of raq's own metrics; name another")
        return self

    @property
    def is_built_in(self) -> bool:
        """Whether raq computes it itself."""
        return self.function in BUILT_IN

    @property
    def is_top1(self) -> bool:
        """Whether it is top-1, whose classes are kept."""
        return self.function == "top1"

    @property
    def in_points(self) -> bool:
        """Whether it is a share, whose differences are given in points of a hundred."""
        return self.is_built_in and self.unit == POINTS

    @property
    def name(self) -> str:
        """In words: top-1, or as the experiment writes it."""
        return IN_WORDS.get(self.function, self.function)

    @property
    def short_name(self) -> str:
        """In words, without the module of a user's function."""
        return self.name.rpartition(":")[2]

    @property
    def heading(self) -> str:
        """Above its values: top-1 %, mse, cost s."""
        return heading_of(self.function, self.unit)

    @property
    def sign(self) -> int:
        """1 where more is better, else -1: a value times it is the higher the better."""
        return 1 if self.greater_is_better else -1

    @property
    def scale(self) -> float:
        """What a value is multiplied by to be read: shares come in percent, and their differences in points."""
        return 100.0 if self.in_points else 1.0

    @property
    def needs_classes(self) -> bool:
        """Whether targets are classes."""
        return self.function in ("top1", "top5", "mean_iou")


TOP1 = Metric()


def loss_of(metric: Metric, asked: str | None) -> str | None:
    """The loss that is trained with: the one asked for, else the metric's; None if it has none."""
    return asked if asked is not None else LOSS_OF.get(metric.function)


def heading_of(function: str, unit: str) -> str:
    """What stands above the values of a metric of this name and unit."""
    name = IN_WORDS.get(function, function).rpartition(":")[2]
    return f"{name} {'%' if unit == POINTS else unit}".strip()


def amount(metric: Metric, difference: float, digits: str = "g") -> str:
    """A difference of the metric in words, with its unit if it has one: 0.3 points."""
    return f"{difference:{digits}} {metric.unit}".strip()


def difference(metric: Metric, value: float) -> str:
    """A difference of the metric as a table has it."""
    return f"{value:.2f}" if metric.in_points else f"{value:.3g}"


def shown(metric: Metric, value: float) -> str:
    """A value of the metric in words: a share in percent, else with its unit."""
    if metric.in_points:
        return f"{100 * value:.2f}%"
    return f"{value:.4g} {metric.unit}".strip()
