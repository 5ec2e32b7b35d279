"""What a user's data function returns where data are no plain arrays of images: `raq.Data`. Imports neither torch nor
ray.

Anything with a length and items counts as a data set: torch's map-style ones, those of Hugging Face, lists. Adapters
make items of arrays and of tables.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from raq.errors import UserError


class MapStyle(Protocol):
    """A data set: a length, and an item for every index below it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


AxisOf = str | tuple[str, int, int]


@dataclass(frozen=True, kw_only=True)
class Data:
    """Data of any kind.

    test, train, calibration: data sets whose items are (inputs, target). inputs: a tensor or array, a tuple of them
    (the network is called with these in order) or a mapping (it is called by name), ready for the network; a target is
    whatever the metric and the loss take. Items of `calibration` may be inputs alone. Without `train` nothing is
    trained: the network comes with weights. Without `calibration` the training split calibrates.

    collate: of a list of items, the batch (inputs, targets); default: torch's own. classes: how many there are, or
    their names in order, where targets are classes. dynamic_axes: by input (name or number), by axis (1 is the first
    after the batch) the name of one whose size varies, or (name, least, most). digest: text that changes when the data
    do; default: raq looks at the lengths, at 64 items of each split and at the code of the function.
    """

    test: MapStyle
    train: MapStyle | None = None
    calibration: MapStyle | None = None
    collate: Callable[[list[Any]], Any] | None = None
    classes: int | Sequence[str] | None = None
    dynamic_axes: Mapping[str | int, Mapping[int, AxisOf]] = field(default_factory=dict)
    digest: str | None = None

    def __post_init__(self) -> None:
        given = self.classes
        if given is None:
            return
        if isinstance(given, list | tuple) and given and all(isinstance(name, str) for name in given):
            twice = sorted({name for name in given if given.count(name) > 1})
            if twice:
                raise UserError(f"raq.Data(classes=...) has {twice[0]!r} twice", "give each class a name of its own")
            return
        if hasattr(given, "__index__") and not isinstance(given, bool) and given.__index__() > 0:
            object.__setattr__(self, "classes", given.__index__())
            return
        raise UserError(
            f"raq.Data(classes=...) is {given!r:.80}", "give how many there are, or a list of their names in order"
        )

    @property
    def class_count(self) -> int | None:
        """How many classes there are; None where targets are none."""
        return self.classes if self.classes is None or isinstance(self.classes, int) else len(self.classes)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes in order, where they are given."""
        return None if self.classes is None or isinstance(self.classes, int) else [str(name) for name in self.classes]

    def splits(self) -> dict[str, MapStyle]:
        """Those that there are, by name; UserError for one that is no data set or is empty."""
        found = {}
        for name in ("train", "calibration", "test"):
            given = getattr(self, name)
            if given is None:
                continue
            if not hasattr(given, "__len__") or not hasattr(given, "__getitem__"):
                raise UserError(
                    f"raq.Data({name}=...) is a {type(given).__name__}, which has no length or no items",
                    "give a map-style data set: with __len__ and __getitem__",
                )
            if _are_arrays(given):
                raise UserError(
                    f"raq.Data({name}=...) is a {type(given).__name__} of {len(given)} arrays, which would be "
                    f"{len(given)} samples",
                    "make a data set of them: raq.Arrays(inputs, targets)",
                )
            if len(given) == 0:
                raise UserError(f"raq.Data({name}=...) is empty", "give at least one sample, or leave it out")
            found[name] = given
        if "test" not in found:
            raise UserError("raq.Data has no test split", "give raq.Data(test=...)")
        return found


def _are_arrays(given: Any) -> bool:
    """Whether these are inputs and targets that should have been a data set: a few arrays, all of so many samples."""
    few = isinstance(given, tuple | list) and 2 <= len(given) <= 3 and all(hasattr(one, "shape") for one in given)
    lengths = {one.shape[:1] for one in given} if few else set()
    return len(lengths) == 1 and next(iter(lengths)) > (len(given),)


@dataclass(frozen=True)
class Arrays:
    """Arrays as a data set: item n is (inputs, target), the n-th part of each.

    inputs: an array [N, ...], a tuple or a mapping of them; targets: [N, ...], or None for calibration. UserError if
    their lengths differ.
    """

    inputs: Any
    targets: Any = None

    def __post_init__(self) -> None:
        lengths = {len(array) for array in (*self._arrays(), *([] if self.targets is None else [self.targets]))}
        if len(lengths) != 1:
            raise UserError(f"raq.Arrays: arrays of different lengths: {sorted(lengths)}", "give one item a sample")

    def _arrays(self) -> Sequence[Any]:
        if isinstance(self.inputs, Mapping):
            return list(self.inputs.values())
        return self.inputs if isinstance(self.inputs, tuple) else [self.inputs]

    def __len__(self) -> int:
        return len(self._arrays()[0])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if isinstance(self.inputs, Mapping):
            inputs: Any = {name: array[index] for name, array in self.inputs.items()}
        elif isinstance(self.inputs, tuple):
            inputs = tuple(array[index] for array in self.inputs)
        else:
            inputs = self.inputs[index]
        return inputs, None if self.targets is None else self.targets[index]


def from_frame(frame: Any, inputs: Sequence[str] | Mapping[str, Sequence[str]], target: str | None) -> Arrays:
    """A pandas table as a data set: columns `inputs` as one float32 vector, or several by name, and a target's column.

    UserError if a column is missing or holds no numbers.
    """
    groups = inputs if isinstance(inputs, Mapping) else {"": inputs}
    wanted = [name for names in groups.values() for name in names] + ([] if target is None else [target])
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise UserError(f"raq.from_frame: there is no column {missing[0]!r}", f"columns: {', '.join(frame.columns)}")
    try:
        arrays = {key: frame[list(names)].to_numpy(dtype=np.float32) for key, names in groups.items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"raq.from_frame: {error}", "encode columns as numbers first") from None
    targets = None if target is None else frame[target].to_numpy()
    return Arrays(arrays if isinstance(inputs, Mapping) else arrays[""], targets)


@dataclass(frozen=True)
class Columns:
    """A data set whose items are mappings (Hugging Face's) as one whose items are (inputs, target).

    inputs: a column, or several, which the network is called with by name; target: a column, or None.
    """

    dataset: MapStyle
    inputs: str | Sequence[str]
    target: str | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        item = self.dataset[int(index)]
        names = [self.inputs] if isinstance(self.inputs, str) else list(self.inputs)
        missing = [name for name in (*names, *([] if self.target is None else [self.target])) if name not in item]
        if missing:
            raise UserError(f"raq.Columns: an item has no {missing[0]!r}", f"its columns: {', '.join(item)}")
        values = {name: np.asarray(item[name]) if isinstance(item[name], list) else item[name] for name in names}
        target = None if self.target is None else item[self.target]
        return (values[self.inputs] if isinstance(self.inputs, str) else values), target
