"""What an evaluate stage leaves in its record, and the parity chain of all stages. Neither torch nor ray."""

from typing import Annotated, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from raq.store.types import Count, Name, Number, Share, Text, Values, strict


@strict
class ParityRow(TypedDict):
    """A step of the parity chain."""

    step: Name
    images: Count
    top1: Share | None
    value: NotRequired[Number]
    against: Name | None
    sqnr_db: Number | None
    equal: bool | None
    changed: Count | None


@strict
class ExecutedLayer(TypedDict):
    """A layer, and the kernel that ran for it."""

    name: Text
    macs: Count
    kernel: Text | None
    int8: bool


@strict
class FloatLayer(TypedDict):
    """A layer that a program leaves in float."""

    name: Text
    reason: Text


@strict
class Examples(TypedDict):
    """Test samples that are kept with their outputs; threads: of the process that computed these."""

    count: Annotated[int, Field(ge=1, le=2**31)]
    threads: Annotated[int, Field(ge=1, le=2**20)]


@strict
class Evaluation(TypedDict):
    """What an evaluate stage found."""

    classes: NotRequired[Annotated[int, Field(ge=1, le=2**31)]]
    train_correct: NotRequired[Count]
    train_images: NotRequired[Annotated[int, Field(ge=1, le=2**40)]]
    float_layers: NotRequired[list[FloatLayer]]
    executed_layers: NotRequired[list[ExecutedLayer]]
    float_by_choice_share: NotRequired[Share]
    top1: NotRequired[Share]
    correct: NotRequired[Count]
    metric: NotRequired[Values]
    value: NotRequired[Number]
    resampled: NotRequired[bool]
    test_images: Annotated[int, Field(ge=1, le=2**40)]
    parity: NotRequired[list[ParityRow]]
    examples: NotRequired[Examples | None]
    thumbnails: NotRequired[Count]
    resident_bytes: NotRequired[Count | None]
    graph_int8_mac_share: NotRequired[Share | None]
    executed_int8_mac_share: NotRequired[Share | None]
    executed_half_mac_share: NotRequired[Share | None]
    reorders_per_call: NotRequired[dict[Name, Count]]
