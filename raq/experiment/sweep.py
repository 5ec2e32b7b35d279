"""The schema of `sweep`: what is tried before a candidate is made. Imports neither torch nor ray."""

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from raq.experiment.fields import Extent, Natural, Observer, Positive, RoundingSteps, Section

DEFAULT_TRIALS = 16
SIZE, OBSERVER, PERCENTILE, SEED = "calibration.size", "calibration.observer", "calibration.percentile", "seed"
PER_CHANNEL, REDUCE_RANGE = "per_channel", "reduce_range"
EQUALIZATION, BIAS_CORRECTION, LEARNED_ROUNDING = "equalization", "bias_correction", "learned_rounding"
PTQ_METHODS = (EQUALIZATION, BIAS_CORRECTION, LEARNED_ROUNDING)  # beside calibration
METHOD = (OBSERVER, PERCENTILE, PER_CHANNEL, REDUCE_RANGE, *PTQ_METHODS)  # what sizes are compared within
Config = dict[str, Any]  # a trial: the keys that it tries, and their values


class PtqSweep(Section):
    """Which calibrations are tried: every combination, each on the validation images."""

    sizes: Annotated[tuple[Positive, ...], Field(strict=False, alias="calibration.size")] = ()
    """Values of ptq.calibration.size; []: the one of `ptq`."""
    observers: Annotated[tuple[Observer, ...], Field(strict=False, alias="calibration.observer")] = ()
    """Values of ptq.calibration.observer; []: the one of `ptq`, as below."""
    percentiles: Annotated[
        tuple[Annotated[float, Field(gt=50, le=100)], ...], Field(strict=False, alias="calibration.percentile")
    ] = ()
    """Values of ptq.calibration.percentile, for the percentile observer."""
    per_channel: Annotated[tuple[bool, ...], Field(strict=False)] = ()
    """Values of ptq.per_channel; a program is compiled for each combination with reduce_range."""
    reduce_range: Annotated[tuple[bool, ...], Field(strict=False)] = ()
    """Values of ptq.reduce_range."""
    equalization: Annotated[tuple[Extent, ...], Field(strict=False)] = ()
    """Values of ptq.equalization. Where this or one of the next two is here, trials do all three, those that are not
    here as `ptq` says; else they calibrate alone, and the candidate made of their choice does what `ptq` says. A trial
    that does one of them quantizes anew, and is computed by torch, uncompiled: it takes longer. Of what loses at most
    select.margin.accuracy more than the best, the least is chosen: no equalization before folded before all, then
    without bias correction, then fewer steps. The candidate made of it climbs `ptq.effort` from there."""
    bias_correction: Annotated[tuple[bool, ...], Field(strict=False)] = ()
    """Values of ptq.bias_correction."""
    learned_rounding: Annotated[tuple[RoundingSteps, ...], Field(strict=False)] = ()
    """Values of ptq.learned_rounding."""
    seeds: Annotated[tuple[Natural, ...], Field(strict=False, alias="seed", min_length=1)] = (0, 1, 2)
    """Seeds of the calibration's sample: what one size gives by chance."""

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, given: Any) -> Any:
        """`calibration: {size: ...}` is `calibration.size: ...`."""
        if not isinstance(given, dict) or not isinstance(given.get("calibration"), dict):
            return given
        nested = {f"calibration.{key}": value for key, value in given["calibration"].items()}
        return {**{key: value for key, value in given.items() if key != "calibration"}, **nested}

    @model_validator(mode="after")
    def _check(self) -> "PtqSweep":
        for name, field in type(self).model_fields.items():
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{field.alias or name}: {list(values)} names a value twice")
        return self


class Range(Section):
    """Numbers between two bounds, all equally likely, or their logarithms."""

    uniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """[lowest, highest]."""
    loguniform: Annotated[tuple[float, float], Field(strict=False)] | None = None
    """[lowest, highest], above 0."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if (self.uniform is None) == (self.loguniform is None):
            raise ValueError("a range is one of uniform: [lowest, highest] and loguniform: [lowest, highest]")
        if not self.low < self.high:
            raise ValueError(f"the range [{self.low:g}, {self.high:g}] is empty; the lowest comes first")
        if self.loguniform is not None and self.low <= 0:
            raise ValueError(f"loguniform starts above 0, not at {self.low:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest."""
        return self.uniform or self.loguniform or (math.nan, math.nan)

    @property
    def low(self) -> float:
        """The lowest."""
        return self.bounds[0]

    @property
    def high(self) -> float:
        """The highest."""
        return self.bounds[1]


Whole = Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] | None
Numbers = Annotated[
    Annotated[tuple[float, ...], Field(strict=False, min_length=1), Tag("list")]
    | Annotated[Range, Tag("range")]
    | Annotated[None, Tag("none")],
    Discriminator(lambda given: "none" if given is None else "range" if isinstance(given, dict | Range) else "list"),
]
Words = Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None


class QatSweep(Section):
    """Which quantization-aware trainings are tried: keys of `qat`, each with a list of values or a range."""

    lr: Numbers = None
    """Learning rates, of start: fp32."""
    epochs: Whole = None
    """Numbers of epochs."""
    batch_size: Whole = None
    """Images an optimiser step."""
    momentum: Numbers = None
    """Of SGD, of start: fp32."""
    weight_decay: Numbers = None
    """L2 penalties, of start: fp32."""
    schedule: Words = None
    """Learning rates over the steps."""
    label_smoothing: Numbers = None
    """Of the cross-entropy."""
    freeze_observers_after: Numbers = None
    """Epochs after which activation ranges stand."""
    freeze_bn_after: Numbers = None
    """Epochs after which batch normalisation stands."""
    weight_lr: Numbers = None
    """Learning rates of weights, of start: ptq."""
    scale_lr: Numbers = None
    """Learning rates of scales, of start: ptq."""
    distillation: Numbers = None
    """Shares of the loss that follow the FP32 network."""

    @property
    def space(self) -> dict[str, Any]:
        """What is tried, by key of `qat`: a list of values, or a range as {"uniform" | "loguniform": [low, high]}."""
        return self.model_dump(mode="json", exclude_none=True)

    @model_validator(mode="after")
    def _check(self) -> "QatSweep":
        if not self.space:
            raise ValueError(f"nothing is tried; allowed: {', '.join(type(self).model_fields)}")
        for key, values in self.space.items():
            if isinstance(values, list) and len(set(values)) < len(values):
                raise ValueError(f"{key}: {values} names a value twice")
        return self


class SweepSelect(Section):
    """What of the trials goes on."""

    max_drop: Annotated[float, Field(ge=0, le=1e9)] = 0.5
    """Points of top-1 (or of the metric; in its own unit half of require.max_drop, unless set) on the validation images
    that a configuration may lose by the estimate; what is shipped has to keep within `require.max_drop` on the test
    images."""
    then: Literal["latency", "size"] = "latency"
    """Of candidates that keep within `require.max_drop`: the fastest is shipped, or the smallest, as measured."""


class LayerSweep(Section):
    """Which layers stay in float, so that PTQ loses less: the candidates mixed-1, mixed-2, ... beside ptq."""

    candidates: Annotated[int, Field(ge=1, le=8)] = 2
    """How many configurations are lowered, evaluated and measured."""
    max_float_layers: Annotated[int, Field(ge=1, le=1000)] = 16
    """The most layers that a mixed-precision configuration leaves in float."""


class Sweep(Section):
    """What is tried before a candidate is made."""

    ptq: PtqSweep | None = None
    """Calibrations; the ptq candidate is the smallest that is shown to lose at most `select.margin.accuracy` points
    against the largest; without one, the largest."""
    qat: QatSweep | None = None
    """Trainings; the qat candidate is the one that is best on the validation images, by the metric."""
    layers: LayerSweep | None = None
    """Mixed-precision configurations: some layers stay in float."""
    trials: Annotated[int, Field(ge=2, le=1000)] | None = None
    """Trainings that random and optuna try, the one of `qat` included; null: 16."""
    search: Literal["grid", "random", "optuna"] = "random"
    """How trainings are found. grid: every combination; random: draws; optuna: its TPE sampler, after ten draws."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: trainings that are not among the better ones after 1, 3, 9, ... epochs end; none: all go to their end."""
    select: SweepSelect = SweepSelect()

    @model_validator(mode="after")
    def _check_search(self) -> "Sweep":
        if self.qat is None:
            return self
        ranges = [key for key, values in self.qat.space.items() if isinstance(values, dict)]
        if self.search == "grid" and ranges:
            raise ValueError(
                f"search: grid takes lists of values, and qat.{ranges[0]} is a range; try random or optuna"
            )
        if self.search == "grid" and self.trials is not None:
            raise ValueError("trials: grid tries every combination; leave trials out")
        return self
