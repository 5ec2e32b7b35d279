"""A `raq.Data` after limits and hold-out: read by batches, known by a digest. torch is imported inside functions."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raq.errors import RaqError, UserError, first_line
from raq.experiment.inputs import Axis, Inputs, InputSpec
from raq.model.batch import Batch, in_batches
from raq.model.cache import Array
from raq.model.data import Arrays, Data, MapStyle

if TYPE_CHECKING:
    import torch

LOOKED_AT = 64  # items of a split that its digest and the description of inputs are taken from
MAX_AXIS = 65_536
INPUT = "input"


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
        return self.data.classes

    def size(self, split: str) -> int:
        """How many samples a split has."""
        return len(self.parts[split].indices) if split in self.parts else 0

    def batches(self, split: str, parts: "list[Array]", device: "torch.device") -> Iterator[Batch]:
        """The samples at these places of a split, a batch for each list of them."""
        return read_batches(self.data, self.parts[split], self.inputs, parts, device, self.workers)

    def labels(self, split: str) -> Array:
        """The classes of all samples of a split, int64 [N]."""
        import torch

        order = in_batches(np.arange(self.size(split)), LOOKED_AT)
        read = self.batches(split, order, torch.device("cpu"))
        return np.concatenate([np.asarray(batch.targets, dtype=np.int64).reshape(-1) for batch in read])

    def describe(self) -> dict[str, Any]:
        """Counts, inputs and digest, for plans and records."""
        return {
            "digest": self.digest,
            "source": self.source,
            "classes": self.classes,
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


class _Collate:
    """Items as a batch: (tensors, in the order of the inputs, targets)."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def __call__(self, items: list[Any]) -> tuple[dict[str, Any], Any]:
        from torch.utils.data import default_collate

        if self.data.collate is not None:
            given = self.data.collate(items)
            inputs, targets = _pair(given, "collate gives")
        else:
            pairs = [_pair(item, "an item is") for item in items]
            inputs = default_collate([pair[0] for pair in pairs])
            without = all(pair[1] is None for pair in pairs)
            targets = None if without else default_collate([pair[1] for pair in pairs])
        return named(inputs), targets


def _pair(item: Any, what: str) -> tuple[Any, Any]:
    """(inputs, target) of an item: a pair, or inputs alone."""
    if isinstance(item, tuple | list):
        if len(item) == 2:
            return item[0], item[1]
        raise UserError(
            f"raq.Data: {what} a {type(item).__name__} of {len(item)}",
            "items are pairs (inputs, target); several inputs go into a tuple or a dict of their own",
        )
    return item, None


def named(inputs: Any) -> "dict[str, torch.Tensor]":
    """A batch's inputs by name: those of a mapping, else input, or input0, input1 and so on. UserError for others."""
    import torch

    if isinstance(inputs, torch.Tensor):
        found = {INPUT: inputs}
    elif isinstance(inputs, Mapping):
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
    return found


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
        collate_fn=_Collate(data),
        num_workers=min(workers, len(order)),
    )
    try:
        for inputs, targets in loader:
            if set(inputs) != {one.name for one in wanted}:
                raise UserError(
                    f"raq.Data: a batch has the inputs {', '.join(inputs)}, and the test split's has "
                    f"{', '.join(one.name for one in wanted)}",
                    "give every split the same inputs",
                )
            yield Batch(tuple(inputs[one.name].to(device) for one in wanted), _moved(targets, device))
    except RaqError:
        raise
    except Exception as error:  # the user's data set and collate raise what they like
        raise UserError(
            f"raq.Data: reading samples fails: {type(error).__name__}: {first_line(error)}",
            "samples of different sizes need a collate of their own; --debug shows where it was",
        ) from error


def _moved(targets: Any, device: "torch.device") -> Any:
    """Tensors among the targets on the device."""
    import torch

    if isinstance(targets, torch.Tensor):
        return targets.to(device)
    if isinstance(targets, Mapping):
        return {name: _moved(value, device) for name, value in targets.items()}
    return targets


def describe_inputs(data: Data, splits: Mapping[str, MapStyle]) -> Inputs:
    """What the network is called with, as a batch of the test split has it. UserError if it cannot be."""
    import torch

    part = Part(splits["test"], np.arange(min(LOOKED_AT, len(splits["test"]))))
    loaded = next(iter(read_named(data, part)))
    axes = {key: dict(given) for key, given in data.dynamic_axes.items()}
    found = []
    for number, (name, tensor) in enumerate(loaded.items()):
        if tensor.ndim == 0 or len(tensor) != len(part.indices):
            raise UserError(
                f"raq.Data: a batch of {len(part.indices)} gives the input {name!r} of {list(tensor.shape)}",
                "the first axis of every input is the batch",
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"raq.Data: the input {name!r} has NaN or infinite numbers", "clean the data first")
        low, high = float(tensor.min()), float(tensor.max())
        own = axes.pop(name, None) or axes.pop(number, None) or {}
        spec = InputSpec(
            name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."), low, high,
            tuple(_axis(name, at, given) for at, given in sorted(own.items())),
        )  # fmt: skip
        problem = spec.problem()
        if problem:
            raise UserError(f"raq.Data: {problem}", "see the data function, and dynamic_axes")
        found.append(spec)
    if axes:
        raise UserError(
            f"raq.Data: dynamic_axes names {next(iter(axes))!r}, and inputs are {', '.join(loaded)}", "name one of them"
        )
    return tuple(found)


def read_named(data: Data, part: Part) -> "Iterator[dict[str, torch.Tensor]]":
    """The inputs of a split's samples by name, LOOKED_AT at a time."""
    for start in range(0, len(part.indices), LOOKED_AT):
        try:
            items = [part.dataset[int(at)] for at in part.indices[start : start + LOOKED_AT]]
            yield _Collate(data)(items)[0]
        except RaqError:
            raise
        except Exception as error:  # the user's data set and collate raise what they like
            raise UserError(
                f"raq.Data: reading samples fails: {type(error).__name__}: {first_line(error)}",
                "samples of different sizes need a collate of their own; --debug shows where it was",
            ) from error


def _axis(name: str, at: int, given: Any) -> Axis:
    axis, least, most = (given, 2, MAX_AXIS) if isinstance(given, str) else given
    if at < 1 or not str(axis).isidentifier() or not 1 <= least <= most:
        raise UserError(
            f"raq.Data: dynamic_axes of {name!r} has {at}: {given!r}",
            "by axis, from 1 on (0 is the batch), a name or (name, least, most)",
        )
    return Axis(at - 1, str(axis), int(least), int(most))


def data_digest(data: Data, splits: Mapping[str, MapStyle], code: Mapping[str, str]) -> str:
    """What tells these data from others.

    Of raq.Arrays all content counts; of other data sets their length and LOOKED_AT items, spread evenly, and `code`
    (SHA-256 of the function's own files). Where an item is another when it is read again, as augmentation makes it,
    all of that split count by their targets.
    """
    digest = hashlib.sha256()
    if data.digest is not None:
        digest.update(f"given {data.digest}".encode())
        digest.update(repr([(name, len(split)) for name, split in splits.items()]).encode())
        return digest.hexdigest()
    for name, split in splits.items():
        digest.update(f"{name} {len(split)}".encode())
        digest.update(repr(sorted(code.items())).encode())
        if isinstance(split, Arrays):
            _update(digest, split.inputs)
            _update(digest, split.targets)
            continue
        places = [int(at) for at in np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(int))]
        found, again = ([_digest_of(split[at]) for at in places] for _ in range(2))
        if found != again:
            found = [_digest_of(_pair(split[at], "an item is")[1]) for at in places]
        digest.update("".join(found).encode())
    return digest.hexdigest()


def _digest_of(value: Any) -> str:
    digest = hashlib.sha256()
    _update(digest, value)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    """Add a value: tensors and arrays by type, shape and content, others by how they are written."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            digest.update(f"key {name}".encode())
            _update(digest, inner)
    elif isinstance(value, tuple | list):
        digest.update(f"list {len(value)}".encode())
        for inner in value:
            _update(digest, inner)
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        array = np.ascontiguousarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes() if array.dtype != object else repr(array.tolist()).encode())
    else:
        written = repr(value)
        place = " at 0x" in written  # in memory, which tells nothing
        digest.update(f"{type(value).__name__} {'' if place else written}".encode())
