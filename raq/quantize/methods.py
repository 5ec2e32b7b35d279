"""PTQ by several methods together: equalization, calibration, bias correction, learned rounding."""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, fx, nn

from raq.errors import StageError
from raq.experiment.fields import Extent, Observer
from raq.experiment.ptq import Calibration, Ptq
from raq.model.batch import in_batches
from raq.model.cache import Array
from raq.model.dataset import Dataset, calibration_indices
from raq.model.inputs import Example
from raq.quantize.bias import correct_biases
from raq.quantize.calibration import calibration_batch, calibration_sample
from raq.quantize.equalization import Equalized, equalize
from raq.quantize.export import graph_of
from raq.quantize.folding import fold_batch_norms
from raq.quantize.learned_rounding import LearnedRounding, learn_rounding
from raq.quantize.ptq import calibrate, prepare_graph, simulated

MEANS_OF, EQUALIZED_BY = 128, 64  # calibration samples: whose means correct biases; whose noise chooses factors
MAX_LEARNED_FROM, LEARNING_BATCH = 1024, 32  # samples, and samples a step

FOLDED = "raq_folded"  # in a graph's meta: its tensors as they were when its batch norms had been folded
Progress = Callable[[str, float | None], None]
"""Told what is being done, and which share of it is done."""


@dataclass(frozen=True)
class Methods:
    """What is done beside calibration. observer: what watches activations, other than `Calibration` has it."""

    equalization: Extent = "none"
    bias_correction: bool = False
    learned_rounding: int = 0
    observer: Observer | None = None

    @classmethod
    def asked(cls, ptq: Ptq) -> "Methods":
        """Those that the experiment names."""
        return cls(ptq.equalization, ptq.bias_correction, ptq.learned_rounding)

    def calibrated_by(self, calibration: Calibration) -> Calibration:
        """The calibration with their observer."""
        return calibration if self.observer is None else calibration.model_copy(update={"observer": self.observer})


@dataclass(frozen=True)
class Source:
    """What is quantized, and how it is calibrated. example: two samples; floats: names of what stays in float; judging:
    calibration samples that judge what is made, by number, so that nothing is learned from them."""

    network: nn.Module
    example: Example
    dataset: Dataset
    backend: str
    calibration: Calibration
    seed: int
    reduce_range: bool
    per_channel: bool = True
    floats: Collection[str] = ()
    judging: Collection[int] = ()


@dataclass
class Made:
    """A calibrated graph, and what the methods did to it. learned_from: samples; seconds: that it took."""

    prepared: fx.GraphModule
    methods: Methods
    equalized: list[Equalized] = field(default_factory=list)
    corrected: list[str] = field(default_factory=list)
    learned: LearnedRounding | None = None
    learned_from: int = 0
    seconds: float = 0.0

    def as_record(self) -> dict[str, Any]:
        """What was done, as plain values."""
        learned = None if self.learned is None else {**asdict(self.learned), "samples": self.learned_from}
        return {
            **asdict(self.methods), "equalized": [asdict(one) for one in self.equalized],
            "corrected": self.corrected, "learned": learned,
        }  # fmt: skip


def quantize(source: Source, methods: Methods, progress: Progress = lambda said, share: None) -> Made:
    """Calibrate the network's graph and apply these methods.

    Equalization is done to the graph in float, before calibration by the observer; biases are corrected after that, and
    rounding is learned at last.
    """
    started = time.perf_counter()
    graph = graph_of(source.network.eval(), source.example)
    calibration = methods.calibrated_by(source.calibration)
    dataset, size = source.dataset, calibration.size
    chosen = calibration_sample(dataset, size, source.seed)
    equalized: list[Equalized] = []
    if methods.equalization != "none":
        progress("equalizing channels", None)
        fold_batch_norms(graph)
        graph.meta[FOLDED] = {name: one.detach() for name, one in (*graph.named_parameters(), *graph.named_buffers())}
        levels, batch = 127 if source.reduce_range else 255, calibration_batch(dataset, chosen[:EQUALIZED_BY])
        parts = in_batches(chosen[EQUALIZED_BY:], calibration.batch_size)
        more = (calibration_batch(dataset, part) for part in parts)
        equalized = equalize(graph, batch, methods.equalization, levels, source.floats, more)
    prepared = prepare_graph(
        graph, source.backend, calibration, source.floats,
        reduce_range=source.reduce_range, per_channel=source.per_channel,
    )  # fmt: skip
    said = "calibrating, {} of {} samples"
    calibrate(prepared, dataset, calibration, source.seed, lambda done: progress(said.format(done, size), done / size))
    made = Made(prepared, methods, equalized)
    if methods.bias_correction or methods.learned_rounding:
        with simulated(prepared) as as_integers:
            _correct(made, as_integers, source, chosen, progress)
    made.seconds = time.perf_counter() - started
    return made


def _correct(made: Made, as_integers: fx.GraphModule, source: Source, chosen: Array, progress: Progress) -> None:
    """What is done to the calibrated graph."""
    if made.methods.bias_correction:
        progress("correcting biases", None)
        made.corrected = correct_biases(as_integers, calibration_batch(source.dataset, chosen[:MEANS_OF]))
    steps = made.methods.learned_rounding
    if steps:
        samples = learning_sample(source)
        made.learned_from = len(samples)
        made.learned = learn_rounding(
            as_integers, source.network, _batches(source.dataset, samples, steps, source.seed), steps,
            lambda done: progress(f"learning how to round, step {done} of {steps}", done / steps),
        )  # fmt: skip


def learning_sample(source: Source) -> Array:
    """The calibration samples that rounding is learned from: MAX_LEARNED_FROM at most, none that judge.

    Raises StageError if there is none.
    """
    available = source.dataset.size("calibration")
    every = calibration_indices(available, available, source.seed)
    chosen = every[~np.isin(every, list(source.judging))][:MAX_LEARNED_FROM]
    if not len(chosen):
        raise StageError(
            "no calibration sample is left to learn rounding from beside those that judge", "give more of them"
        )
    return chosen


def _batches(dataset: Dataset, chosen: Array, steps: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of so many steps: these calibration samples, in another order each time through."""
    draws = np.random.default_rng(seed)
    size = min(LEARNING_BATCH, len(chosen))
    while steps > 0:
        for part in in_batches(draws.permutation(chosen), size)[: min(steps, len(chosen) // size)]:  # whole ones
            yield calibration_batch(dataset, part)
            steps -= 1
