"""Averages of weights over the steps of a training. Must not import ray."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raq.model.batch_norm import STATISTICS


class WeightAverage:
    """An exponential moving average of a model's parameters and of the statistics of its batch norms.

    Of step t the rate is the larger of 1 / horizon and 10 / (t + 10), so that the first steps, far from where training
    ends, are forgotten soon. The average of a state dict's entries, by name, is `state`.
    """

    def __init__(self, model: nn.Module, horizon: float) -> None:
        self.model, self.horizon, self.steps = model, max(1.0, horizon), 0
        self.state = {name: tensor.detach().clone() for name, tensor in self._own()}

    def _own(self) -> list[tuple[str, Tensor]]:
        """What is averaged, of the model."""
        buffers = [(name, one) for name, one in self.model.named_buffers() if name.endswith(STATISTICS)]
        return [(name, one) for name, one in (*self.model.named_parameters(), *buffers) if one.is_floating_point()]

    @torch.no_grad()
    def step(self) -> None:
        """Take in the weights after a step."""
        rate = max(1 / self.horizon, 10 / (self.steps + 10))
        self.steps += 1
        for name, tensor in self._own():
            self.state[name].lerp_(tensor.detach(), rate)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model with the averages in place of its own meanwhile; what is changed of them then does not last."""
        with torch.no_grad():
            kept = {name: tensor.detach().clone() for name, tensor in self._own()}
            for name, tensor in self._own():
                tensor.copy_(self.state[name])
            try:
                yield
            finally:
                for name, tensor in self._own():
                    tensor.copy_(kept[name])

    def as_state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {**self.state, "steps": torch.tensor(self.steps)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint's."""
        self.steps = int(state["steps"])
        for name in self.state:
            self.state[name].copy_(state[name])
