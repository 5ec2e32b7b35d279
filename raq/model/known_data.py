"""What a `raq.Data` is found to be: its inputs, and the digest that tells it from others. torch is imported inside
functions.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from raq.errors import UserError
from raq.experiment.inputs import Axis, Inputs, InputSpec
from raq.model.data import Arrays, Data, MapStyle
from raq.model.samples import Collate, pair_of, reading_errors

LOOKED_AT = 64  # items of a split
MAX_AXIS = 65_536


def describe_inputs(data: Data, splits: Mapping[str, MapStyle]) -> Inputs:
    """What the network is called with, as a batch of the test split has it. UserError if it cannot be."""
    import torch

    count = min(LOOKED_AT, len(splits["test"]))
    with reading_errors():
        loaded, by_name = Collate(data)([splits["test"][at] for at in range(count)])[0]
    axes = {key: dict(given) for key, given in data.dynamic_axes.items()}
    found = []
    for number, (name, tensor) in enumerate(loaded.items()):
        if tensor.ndim == 0 or len(tensor) != count:
            raise UserError(
                f"raq.Data: a batch of {count} gives the input {name!r} of {list(tensor.shape)}",
                "the first axis of every input is the batch",
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"raq.Data: the input {name!r} has NaN or infinite numbers", "clean the data first")
        low, high = float(tensor.min()), float(tensor.max())
        own = axes.pop(name, None) or axes.pop(number, None) or {}
        spec = InputSpec(
            name, tuple(tensor.shape[1:]), str(tensor.dtype).removeprefix("torch."), low, high,
            tuple(_axis(name, at, given) for at, given in sorted(own.items())), by_name,
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
            found = [_digest_of(pair_of(split[at], "an item is")[1]) for at in places]
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
