"""What each kind of sweep leaves in its record as results: keys, types and bounds. Neither torch nor ray.

The keys here are those of any metric. A record of top-1 has the names that it had before there were others
(`as_written`, `as_read`), since scripts of others read them.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired, cast

from pydantic import Field, ValidationError
from typing_extensions import TypedDict

from raq.errors import UserError
from raq.experiment.metric import TOP1, Metric
from raq.store.types import Count, Name, Number, Pair, Share, Text, Values, strict

NAMES_OF_TOP1 = {
    "value": "top1", "value_interval": "top1_interval", "mean_value": "mean_top1", "std_value": "std_top1",
    "values": "top1", "baseline_value": "baseline_top1", "drop": "drop_points", "gained": "gained_points",
}  # fmt: skip
_CONFIG = "config"  # what is tried: keys of the experiment, which keep their names


def written_name(key: str, metric: Metric) -> str:
    """What a key of these results is called in a record of a sweep by this metric."""
    return NAMES_OF_TOP1.get(key, key) if metric.is_top1 else key


def with_written_names(part: Values, metric: Metric) -> Values:
    """A part of the results as a record has it."""
    return cast("Values", _renamed(part, NAMES_OF_TOP1)) if metric.is_top1 else part


def as_written(results: Values, metric: Metric) -> Values:
    """Results as a record has them: with the names of top-1, or with the metric beside them."""
    named = with_written_names(results, metric)
    return named if metric.is_top1 else {**named, "metric": metric.model_dump(mode="json")}


def as_read(results: Values) -> Values:
    """The results of a record, whatever their metric, with the names of any."""
    if "metric" in results:
        return results
    return cast("Values", _renamed(results, {name: key for key, name in NAMES_OF_TOP1.items() if key != "values"}))


def metric_of_sweep(results: Mapping[str, Any]) -> Metric:
    """What a sweep's trials were judged by; UserError if its record names none that there is."""
    try:
        return Metric.model_validate(results["metric"]) if "metric" in results else TOP1
    except (ValidationError, TypeError):
        raise UserError("a sweep's record names a metric that is none", "delete its folder and run again") from None


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_renamed(entry, names) for entry in value]
    if not isinstance(value, dict):
        return value
    return {names.get(key, key): entry if key == _CONFIG else _renamed(entry, names) for key, entry in value.items()}


@strict
class Choice(TypedDict):
    """What a sweep chose, and why."""

    why: Text


@strict
class PtqChoice(Choice):
    """Of a sweep of calibrations."""

    config: Values


@strict
class FailedTrial(TypedDict):
    """A trial that failed."""

    config: Values
    error: Text


@strict
class CurveRow(TypedDict):
    """One calibration, over its seeds."""

    size: Count
    observer: Name
    percentile: Number | None
    per_channel: NotRequired[bool]
    reduce_range: NotRequired[bool]
    equalization: NotRequired[Name | None]
    bias_correction: NotRequired[bool | None]
    learned_rounding: NotRequired[Count | None]
    seeds: list[Count]
    mean_value: Number
    std_value: Number | None
    drop: Number
    against_largest: Number | None
    against_largest_interval: Pair | None
    loses_at_most: NotRequired[Number | None]


@strict
class PtqSweepResults(TypedDict):
    """What a sweep of calibrations found."""

    trials: list[Values]
    failed: list[FailedTrial]
    validation_images: Count
    baseline_value: Number
    metric: NotRequired[Values]
    curve: Annotated[list[CurveRow], Field(min_length=1)]
    choice: PtqChoice
    calibration_images: Count
    calibration_passes: Count


@strict
class QatTrial(TypedDict):
    """One training of a search."""

    number: Count
    config: Values
    state: Literal["finished", "stopped", "failed"]
    epochs: NotRequired[Count]
    value: NotRequired[Number | None]
    value_interval: NotRequired[Pair | None]
    front: NotRequired[bool]
    error: NotRequired[Text]


@strict
class QatChoice(Choice):
    """Of a search for a training."""

    number: Count


@strict
class QatSweepResults(TypedDict):
    """What a search for a training found."""

    trials: Annotated[list[QatTrial], Field(min_length=1)]
    validation_images: Count
    baseline_value: Number
    metric: NotRequired[Values]
    importance: dict[Name, Number] | None
    epochs_trained: Number
    epochs_asked: Number
    search: Name
    choice: QatChoice


@strict
class Scored(TypedDict):
    """A mixed-precision configuration as it was scored."""

    drop: Number
    drop_interval: Pair
    sqnr_db: Number | None


@strict
class Effect(TypedDict):
    """What one layer makes of the drop and of the noise."""

    drop: Number
    sqnr_db: Number | None


@strict
class AllQuantized(Scored):
    """What int8 everywhere comes to."""

    value: Number


@strict
class ChosenConfiguration(Scored):
    """A configuration that was chosen."""

    layers: Text
    float_mac_share: Share


@strict
class Sensitivity(TypedDict):
    """What leaving one layer out, and quantizing it alone, came to."""

    layer: Text
    mac_share: Share
    without: Effect | None
    only: Effect | None


@strict
class LayerChoice(Choice):
    """Of a search for layers to leave in float."""

    mixtures: list[ChosenConfiguration]


@strict
class LayerSweepResults(TypedDict):
    """What a search for layers to leave in float found."""

    trials: list[Values]
    validation_images: Count
    baseline_value: Number
    metric: NotRequired[Values]
    all_quantized: AllQuantized
    sensitivity: list[Sensitivity]
    choice: LayerChoice
