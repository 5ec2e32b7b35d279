"""A `raq.Data` after limits and hold-out, read by batches. torch is imported inside functions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raq.errors import RaqError, UserError, first_line
from raq.experiment.inputs import INPUT, Inputs
from raq.model.batch import Batch, in_batches
from raq.model.cache import Array
from raq.model.data import Data, MapStyle

if TYPE_CHECKING:
    import torch

LABELS_AT_ONCE = 64


@dataclass(frozen=True)
class Part:
    """A split: a data set, and which of its items belong to it."""

    dataset: MapStyle
    indices: Array


@dataclass(frozen=True)
class SampleDataset:
    """Samples of any kind. parts: train, validation, calibration and test; inputs: what the network is called with."""

    data: Data
    parts: Mapping[str, Part]
    inputs: Inputs
    digest: str
    source: str
    workers: int = 0

    @property
    def classes(self) -> int | None:
        """How many there are, where targets are classes."""
        return self.data.class_count

    def size(self, split: str) -> int:
        """How many samples a split has."""
        return len(self.parts[split].indices) if split in self.parts else 0

    def batches(self, split: str, parts: "list[Array]", device: "torch.device") -> Iterator[Batch]:
        """The samples at these places of a split, a batch for each list of them."""
        return read_batches(self.data, self.parts[split], self.inputs, parts, device, self.workers)

    def labels(self, split: str) -> Array:
        """The classes of all samples of a split, int64 [N]."""
        import torch

        order = in_batches(np.arange(self.size(split)), LABELS_AT_ONCE)
        read = self.batches(split, order, torch.device("cpu"))
        return np.concatenate([np.asarray(batch.targets, dtype=np.int64).reshape(-1) for batch in read])

    def describe(self) -> dict[str, Any]:
        """Counts, inputs and digest, for plans and records."""
        return {
            "digest": self.digest,
            "source": self.source,
            "classes": self.classes,
            "class_names": self.data.class_names,
            "train_images": self.size("train"),
            "validation_images": self.size("validation"),
            "test_images": self.size("test"),
            "calibration_images": self.size("calibration"),
            "inputs": [one.plain() for one in self.inputs],
        }


class _Items:
    """Some items of a data set, for torch's loader, which pickles nothing where it has no processes."""

    def __init__(self, part: Part) -> None:
        self.part = part

    def __len__(self) -> int:
        return len(self.part.indices)

    def __getitem__(self, at: int) -> Any:
        return self.part.dataset[int(self.part.indices[at])]


class NamedInputs(NamedTuple):
    """A batch's inputs by name; by_name: whether these are the user's names."""

    tensors: "dict[str, torch.Tensor]"
    by_name: bool


class Collate:
    """Items as a batch: (inputs, targets)."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __call__(self, items: list[Any]) -> tuple[NamedInputs, Any]:
        """The batch of these items. UserError for what is no pair, and for inputs that are no tensors."""
        from torch.utils.data import default_collate

        if self.data.collate is not None:
            given = self.data.collate(items)
            inputs, targets = pair_of(given, "collate gives")
        else:
            pairs = [pair_of(item, "an item is") for item in items]
            inputs = default_collate([pair[0] for pair in pairs])
            without = all(pair[1] is None for pair in pairs)
            targets = None if without else default_collate([pair[1] for pair in pairs])
        return _named(inputs), targets


def pair_of(item: Any, what: str) -> tuple[Any, Any]:
    """(inputs, target) of an item: a pair, or inputs alone."""
    if isinstance(item, tuple | list):
        if len(item) == 2:
            return item[0], item[1]
        raise UserError(
            f"raq.Data: {what} a {type(item).__name__} of {len(item)}",
            "items are pairs (inputs, target); several inputs go into a tuple or a dict of their own",
        )
    return item, None


def _named(inputs: Any) -> NamedInputs:
    """A batch's inputs by name: those of a mapping, else input, or input0, input1 and so on. UserError for others."""
    import torch

    by_name = isinstance(inputs, Mapping)
    if by_name:
        found = dict(inputs)
    elif isinstance(inputs, tuple | list):
        found = {f"{INPUT}{number}": value for number, value in enumerate(inputs)}
    else:
        found = {INPUT: inputs}
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"raq.Data: the input {name!r} is a {type(value).__name__}, not a tensor",
                "inputs are tensors or arrays, or a tuple or dict of them, not nested further",
            )
        if value.dtype == torch.float64:
            raise UserError(
                f"raq.Data: the input {name!r} is float64, and networks compute in float32",
                "give float32: array.astype('float32')",
            )
    return NamedInputs(found, by_name)


@contextmanager
def reading_errors() -> Iterator[None]:
    """Whatever the user's data set or collate raises, as UserError."""
    try:
        yield
    except RaqError:
        raise
    except Exception as error:  # they raise what they like
        raise UserError(
            f"raq.Data: reading samples fails: {type(error).__name__}: {first_line(error)}",
            "samples of different sizes need a collate of their own; --debug shows where it was",
        ) from error


def read_batches(
    data: Data, part: Part, wanted: Inputs, parts: "list[Array]", device: "torch.device", workers: int = 0
) -> Iterator[Batch]:
    """Batches of a split, through torch's DataLoader. UserError, naming the data, for whatever reading them raises."""
    from torch.utils.data import DataLoader

    order = [[int(at) for at in one] for one in parts]
    items: Any = _Items(part)
    loader: Any = DataLoader(
        items,
        batch_sampler=order,
        collate_fn=Collate(data),
        num_workers=min(workers, len(order)),
    )
    batches = iter(loader)
    for _ in order:
        with reading_errors():
            (tensors, _by_name), targets = next(batches)
        if set(tensors) != {one.name for one in wanted}:
            raise UserError(
                f"raq.Data: a batch has the inputs {', '.join(tensors)}, and the test split's has "
                f"{', '.join(one.name for one in wanted)}",
                "give every split the same inputs",
            )
        yield Batch(tuple(tensors[one.name].to(device) for one in wanted), _moved(targets, device))


def _moved(targets: Any, device: "torch.device") -> Any:
    """Tensors among the targets on the device."""
    import torch

    if isinstance(targets, torch.Tensor):
        return targets.to(device)
    if isinstance(targets, Mapping):
        return {name: _moved(value, device) for name, value in targets.items()}
    return targets
