"""One batch of a data set, whatever its samples are. Must not import torch at its top."""

from typing import TYPE_CHECKING, Any, NamedTuple

from raq.model.cache import Array

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """inputs: tensors [n, ...] in the order in which the network takes them; targets: whatever the data have."""

    inputs: "tuple[Tensor, ...]"
    targets: Any


def in_batches(indices: Array, size: int) -> list[Array]:
    """These places in batches of so many, the last one smaller if need be."""
    return [indices[start : start + size] for start in range(0, len(indices), size)]
