"""What a stage ptq found: what each layer loses, by which methods it was made. Neither torch nor ray."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from raq.store.types import Count, Number, Share, Text, strict


@strict
class LayerLoss(TypedDict):
    """What a layer loses by quantization (`quantize.losses.LayerLoss`)."""

    name: Text
    sqnr_db: Number | None
    own_sqnr_db: Number | None
    weight_sqnr_db: Number | None
    input_low: Number | None
    input_high: Number | None
    saturated_share: Share | None
    reach: Number | None
    used_share: NotRequired[Share | None]
    shift_share: Number | None


@strict
class EqualizedLayers(TypedDict):
    """Layers whose common input was equalized (`quantize.equalization.Equalized`)."""

    names: list[Text]
    into: Text | None
    alpha: Number
    own_sqnr_db: Annotated[list[Number], Field(min_length=2, max_length=2)]


@strict
class LearnedRounding(TypedDict):
    """What learning came to (`quantize.learned_rounding.LearnedRounding`), and of how many samples it learned."""

    steps: Count
    samples: NotRequired[Count]
    error_before: Number
    error_after: Number
    moved_share: Share


@strict
class PtqMethods(TypedDict):
    """What was done beside calibration (`quantize.methods.Made`). observer: of the ladder, None as asked."""

    equalization: Text
    bias_correction: bool
    learned_rounding: Count
    observer: NotRequired[Text | None]
    equalized: list[EqualizedLayers]
    corrected: list[Text]
    learned: LearnedRounding | None


@strict
class ClimbedStep(TypedDict):
    """A step of the ladder of `ptq.effort`. drop: in points or in the metric's unit, None without targets. error: why
    the step could not be done, sqnr_db and drop being None then."""

    step: Text
    kept: bool
    seconds: Number
    sqnr_db: Number | None
    drop: Number | None
    drop_interval: Annotated[list[Number], Field(min_length=2, max_length=2)] | None
    error: NotRequired[Text]


@strict
class Climbed(TypedDict):
    """How the ladder was climbed. enough: the drop that ends it; samples, split: that judge; calibrating: how many of
    these calibrated too; compared: what sqnr_db is of, probabilities or outputs; records without it are of outputs."""

    effort: Text
    enough: Number
    samples: Count
    split: Text
    calibrating: NotRequired[Count]
    compared: NotRequired[Text]
    rows: Annotated[list[ClimbedStep], Field(min_length=1)]
