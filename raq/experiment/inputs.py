"""What a network is called with: one description an input, kept in records and in artifacts. Neither torch nor ray."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
IMAGES, INPUT = "images", "input"  # what an input is called where data are images, and where they have no names
MAX_INPUTS, MAX_DIMENSIONS, MAX_SIZE = 64, 8, 10**7
MAX_NUMBERS = 50_000_000  # of a sample, of all inputs
WHOLE = {"int32": 2**31 - 1, "int16": 2**15 - 1, "int8": 127, "uint8": 255, "bool": 1}


@dataclass(frozen=True)
class Axis:
    """A dimension, beside the batch, whose size may vary. dimension: of one sample, from 0; least, most: its sizes."""

    dimension: int
    name: str
    least: int
    most: int


@dataclass(frozen=True)
class InputSpec:
    """One input of a network.

    shape: of one sample, without the batch (an axis that varies: the size that was seen); dtype: as torch names it;
    low, high: the least and the largest number seen in data, None for normalised images; axes: those that vary;
    by_name: whether the network is called with it by its name, else in order.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    axes: tuple[Axis, ...] = ()
    by_name: bool = False

    def problem(self) -> str | None:
        """What no input can be; None if nothing is wrong with it."""
        numbers = math.prod(self.shape)
        most = 1e30 if "float" in self.dtype else WHOLE.get(self.dtype, 2**62)
        low, high = (0.0, 0.0) if self.low is None or self.high is None else (self.low, self.high)
        checks = (
            (self.dtype in DTYPES, f"is of type {self.dtype}; taken are {', '.join(DTYPES)}"),
            (
                len(self.shape) <= MAX_DIMENSIONS and all(0 < size <= MAX_SIZE for size in self.shape),
                f"has the shape {list(self.shape)}",
            ),
            (numbers <= MAX_NUMBERS, f"has {numbers} numbers a sample"),
            ((self.low is None) == (self.high is None), f"has the range {self.low} to {self.high}"),
            (-most <= low <= high <= most, f"has the range {self.low} to {self.high}, and is {self.dtype}"),
            (all(0 <= axis.dimension < len(self.shape) for axis in self.axes), "has no such axis"),
        )
        return next((f"the input {self.name!r} {what}" for holds, what in checks if not holds), None)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        own = asdict(self)
        return {**own, "shape": list(self.shape), "axes": [asdict(axis) for axis in self.axes]}


Inputs = tuple[InputSpec, ...]
_INPUTS = TypeAdapter(tuple[InputSpec, ...])
# of a model that is strict about types: plain values become descriptions before it looks
InputsOfSettings = Annotated[tuple[InputSpec, ...], BeforeValidator(_INPUTS.validate_python)]


def image_input(shape: Iterable[int]) -> InputSpec:
    """Normalised images, float32 [C, H, W] each."""
    return InputSpec(IMAGES, tuple(shape))


def read_inputs(values: Any) -> Inputs | None:
    """Descriptions from plain values, a stranger's perhaps; None if they are none."""
    try:
        found = _INPUTS.validate_python(values)
    except ValidationError:
        return None
    if not 0 < len(found) <= MAX_INPUTS or any(one.problem() for one in found):
        return None
    if len({one.name for one in found}) < len(found) or sum(math.prod(one.shape) for one in found) > MAX_NUMBERS:
        return None
    return found


def names_of(inputs: Inputs) -> list[str] | None:
    """What a network is called with by name; None where it takes its inputs in order."""
    return [one.name for one in inputs] if any(one.by_name for one in inputs) else None


def in_words(inputs: Inputs) -> str:
    """For messages: "images float32 [n, 3, 32, 32]"."""
    return ", ".join(f"{one.name} {one.dtype} [{', '.join(map(str, ('n', *one.shape)))}]" for one in inputs)
