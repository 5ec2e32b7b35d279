"""What each kind of sweep leaves in its record as results: keys, types and bounds. Neither torch nor ray."""

from typing import Annotated, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from raq.store.types import Count, Name, Number, Pair, Share, Text, Values, strict


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
    seeds: list[Count]
    mean_top1: Share
    std_top1: Number | None
    drop_points: Number
    against_largest: Number | None
    against_largest_interval: Pair | None
    loses_at_most: NotRequired[Number | None]


@strict
class PtqSweepResults(TypedDict):
    """What a sweep of calibrations found."""

    trials: list[Values]
    failed: list[FailedTrial]
    validation_images: Count
    baseline_top1: Share
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
    top1: NotRequired[Share | None]
    top1_interval: NotRequired[Pair | None]
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
    baseline_top1: Share
    importance: dict[Name, Number] | None
    epochs_trained: Number
    epochs_asked: Number
    search: Name
    choice: QatChoice


@strict
class Scored(TypedDict):
    """A mixed-precision configuration as it was scored."""

    drop_points: Number
    drop_interval: Pair
    sqnr_db: Number | None


@strict
class Effect(TypedDict):
    """What one layer makes of the drop and of the noise."""

    drop_points: Number
    sqnr_db: Number | None


@strict
class AllQuantized(Scored):
    """What int8 everywhere comes to."""

    top1: Share


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
    baseline_top1: Share
    all_quantized: AllQuantized
    sensitivity: list[Sensitivity]
    choice: LayerChoice
