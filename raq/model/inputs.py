"""Tensors that fit what a network is called with: examples for export, random ones for measurements."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raq.experiment.inputs import Axis, Inputs, InputSpec


@dataclass(frozen=True)
class Example:
    """What a network is exported with: tensors [n, ...] in the order of its inputs, and of each the axes that vary."""

    inputs: tuple[Tensor, ...]
    axes: tuple[tuple[Axis, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.inputs[0])

    def first(self, count: int) -> "Example":
        """So many of its samples."""
        return Example(tuple(tensor[:count] for tensor in self.inputs), self.axes)

    def with_random_values(self) -> "Example":
        """With normal numbers in place of zeros, so that two networks that differ give different outputs."""
        generator = torch.Generator().manual_seed(0)
        inputs = tuple(
            torch.randn(one.shape, generator=generator).to(one.dtype)
            if one.dtype.is_floating_point and not one.any()
            else one
            for one in self.inputs
        )
        return Example(inputs, self.axes)

    def axes_of(self, number: int) -> Mapping[int, Axis]:
        """The axes of an input that vary, by their dimension in a batch."""
        return {axis.dimension + 1: axis for axis in self.axes[number]} if self.axes else {}


def as_example(given: Tensor | Example) -> Example:
    """An example of one tensor, or as it is."""
    return given if isinstance(given, Example) else Example((given,))


def example_of(inputs: Inputs, count: int = 2) -> Example:
    """An example of so many samples: images of zeros, others by chance out of the range that was seen in data."""
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(
        torch.zeros(count, *one.shape, dtype=_dtype(one)) if one.low is None else _random(one, count, generator)
        for one in inputs
    )
    return Example(tensors, tuple(one.axes for one in inputs))


def random_inputs(inputs: Sequence[InputSpec], count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """So many random samples [count, ...], the same for the same seed: images normal, others uniform in their range."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random(one, count, generator) for one in inputs)


def copies(inputs: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """For a network that is called once of several times with these: it may write into what it is given."""
    return tuple(one.clone() for one in inputs)


def _dtype(one: InputSpec) -> torch.dtype:
    found: torch.dtype = getattr(torch, one.dtype)
    return found


def _random(one: InputSpec, count: int, generator: torch.Generator) -> Tensor:
    dtype, size = _dtype(one), (count, *one.shape)
    if one.low is None or one.high is None:
        return torch.randn(size, generator=generator).to(dtype)
    if dtype.is_floating_point:
        return (one.low + (one.high - one.low) * torch.rand(size, generator=generator)).to(dtype)
    return torch.randint(int(one.low), int(one.high) + 1, size, generator=generator).to(dtype)
