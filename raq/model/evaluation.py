"""What a network gives for a split, and what a metric makes of that, the last partial batch included."""

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raq.model.batch import in_batches
from raq.model.cache import Array
from raq.model.dataset import Dataset

if TYPE_CHECKING:
    from raq.model.metrics import Scorer, Scores

Network = Callable[..., Tensor]  # of the inputs, tensors [n, ...] with any n; gives a tensor [n, ...]
BATCH_SIZE = 128


def predict(
    network: Network, dataset: Dataset, device: str = "cpu", batch_size: int = BATCH_SIZE, split: str = "test"
) -> Array:
    """The class predicted for every sample of the split, int64 [N].

    `network` takes the data's inputs and gives logits [n, classes].
    """
    everything = np.arange(dataset.size(split))
    return logits(network, dataset, everything, device, batch_size, lambda given: given.argmax(1), split)


class Predicted(NamedTuple):
    """Of every sample of a split: the class predicted and its own, int64 [N] each, and by how much the logit of the
    first exceeds that of the next class, float32 [N] (infinite where there is but one)."""

    classes: Array
    targets: Array
    margins: Array


def predict_with_targets(network: Network, dataset: Dataset, split: str = "test") -> Predicted:
    """What is predicted for every sample of the split, and how surely."""
    samples = dataset.size(split)
    found, wanted, sure = Rows(samples), Rows(samples), Rows(samples)
    for output, targets in run(network, dataset, np.arange(samples), split=split):
        found.add(output.argmax(1).cpu().numpy())
        wanted.add(torch.as_tensor(targets).cpu().numpy().reshape(-1))
        best = output.float().topk(min(2, output.shape[1]), 1).values
        sure.add((best[:, 0] - best[:, 1] if best.shape[1] > 1 else best[:, 0] + math.inf).cpu().numpy())
    return Predicted(found.together(), wanted.together(), sure.together())


def run(
    network: Network,
    dataset: Dataset,
    chosen: Array,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    split: str = "test",
) -> Iterator[tuple[Tensor, Any]]:
    """The outputs [n, ...] for the samples `chosen`, and their targets, batch by batch."""
    with torch.inference_mode():
        for inputs, targets in dataset.batches(split, in_batches(chosen, batch_size), torch.device(device)):
            yield network(*inputs), targets


def logits(
    network: Network,
    dataset: Dataset,
    chosen: Array,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    keep: Callable[[Tensor], Tensor] = lambda given: given.float(),
    split: str = "test",
) -> Array:
    """What `keep` makes of the outputs [n, ...] for the samples `chosen`; by default they themselves, float32.

    Batches are of `batch_size`, the last one smaller if need be. Outputs whose other sizes differ from batch to batch
    come as one row of numbers.
    """
    return outputs_and_parts(network, dataset, chosen, None, device, batch_size, keep, split)[0]


def score(
    network: Network,
    dataset: Dataset,
    scorer: "Scorer",
    chosen: Array,
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    split: str = "test",
) -> "Scores":
    """What the metric makes of the samples `chosen`."""
    parts = outputs_and_parts(network, dataset, chosen, scorer, device, batch_size, None, split)[1]
    return scorer.together(parts)


def outputs_and_parts(
    network: Network,
    dataset: Dataset,
    chosen: Array,
    scorer: "Scorer | None",
    device: str = "cpu",
    batch_size: int = BATCH_SIZE,
    keep: Callable[[Tensor], Tensor] | None = lambda given: given.float(),
    split: str = "test",
) -> tuple[Array, list[Any]]:
    """What `keep` makes of the outputs (None: nothing), and what the metric keeps of each batch, in one pass."""
    kept, scores = Rows(len(chosen)), Rows(len(chosen))
    parts: list[Any] = []
    for output, targets in run(network, dataset, chosen, device, batch_size, split):
        if keep is not None:
            kept.add(keep(output).cpu().numpy())
        part = scorer.of_batch(output, targets) if scorer is not None else None
        if isinstance(part, np.ndarray):
            scores.add(part)
        elif part is not None:
            parts.append(part)
    return kept.together(), [scores.together()] if scores.done else parts


class Rows:
    """Rows of numbers that come batch by batch, written into one array.

    Kept one by one, each small array would lie in the gap that a large batch has left, the next batch would need new
    memory, and a process that reads 10,000 images would end with all of them (glibc's malloc).
    """

    def __init__(self, count: int) -> None:
        self.count, self.done = count, 0
        self.rows: Array | None = None
        self.others: list[Array] = []  # once a batch has rows of another size

    def add(self, batch: Array) -> None:
        """The next rows [n, ...]."""
        if self.rows is None:
            self.rows = np.empty((self.count, *batch.shape[1:]), dtype=batch.dtype)
        if self.others or batch.shape[1:] != self.rows.shape[1:]:
            self.others.append(batch.reshape(-1))
            return
        self.rows = self.rows.astype(np.result_type(self.rows, batch), copy=False)  # a later batch may need more
        self.rows[self.done : self.done + len(batch)] = batch
        self.done += len(batch)

    def together(self) -> Array:
        """All rows [N, ...]; those of several sizes as one row of numbers."""
        if self.rows is None:
            return np.empty(0)
        if not self.others:
            return self.rows[: self.done]
        return np.concatenate([self.rows[: self.done].reshape(-1), *self.others])
