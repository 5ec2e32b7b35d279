"""The parity chain: does each step from FP32 to the saved artifact still compute what the step before it computed?

Compared on the same images: top-1, and the signal-to-quantization-noise ratio of the logits. Steps, in order:
fp32 (the network), prepared (QAT: its graph before training, fake quantizers off), simulated (the graph with fake
quantizers; QAT: trained, so compared with nothing before it), converted (the quantized program, run by torch's
reference kernels), lowered (the package, as compiled), reloaded (the saved file in an isolated process).
"""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raq.errors import StageError

if TYPE_CHECKING:
    from raq.model.dataset import Dataset
    from raq.model.evaluation import Network
    from raq.model.metrics import Scorer

SUMMED = 2**22  # numbers at once
Logits = NDArray[np.float32]


def sqnr_db(reference: Logits, given: Logits) -> float | None:
    """10 log10 of signal power over noise power, over all outputs [n, ...]; None if the two are equal.

    Widrow and Kollar, Quantization Noise (2008), chapter 1. Logits that are not finite give minus infinity's stand-in,
    -300 dB, so that no comparison lets them through.
    """
    signal = noise = 0.0
    step = max(1, SUMMED // max(1, reference[:1].size))  # rows: float64 copies of all would take several times as much
    for at in range(0, len(reference), step):
        wanted, found = reference[at : at + step], given[at : at + step]
        if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
            return -300.0
        noise += float(np.square(wanted.astype(np.float64) - found).sum())
        signal += float(np.square(wanted.astype(np.float64)).sum())
    if noise == 0:
        return None
    return 10 * math.log10(signal / noise) if signal else -300.0


def compare(
    step: str,
    outputs: Logits,
    value: float,
    samples: int,
    before: str | None = None,
    reference: Logits | None = None,
    *,
    classes: bool = True,
) -> dict[str, Any]:
    """One step's row, as plain values: outputs [n, ...], the metric's value; `reference`: outputs of the step `before`.

    classes: whether outputs are logits, so that `top1` is the value, and changed the samples whose class is another.
    equal: whether all outputs are the same.
    """
    row: dict[str, Any] = {"step": step, "images": samples, "top1": value if classes else None, "value": value}
    if reference is None:
        return {**row, "against": None, "sqnr_db": None, "equal": None, "changed": None}
    ratio = sqnr_db(reference, outputs)
    changed = int((outputs.argmax(1) != reference.argmax(1)).sum()) if classes else None
    return {**row, "against": before, "sqnr_db": ratio, "equal": ratio is None, "changed": changed}


def sample(test_count: int, images: int | None, seed: int) -> NDArray[np.int64]:
    """Which test images the steps are compared on: a fixed random sample, in order; None: all of them."""
    chosen = np.random.default_rng(seed).permutation(test_count)[:images]
    return np.sort(chosen)


class Chain:
    """The steps that one stage does, each compared with the one before it, on the same sample of test images.

    rows: a row a step (`compare`); seconds: what the proof has cost so far.
    """

    def __init__(self, dataset: "Dataset", images: int | None, seed: int, scorer: "Scorer") -> None:
        self.dataset, self.scorer = dataset, scorer
        self.chosen = sample(dataset.size("test"), images, seed)
        self.rows: list[dict[str, Any]] = []
        self.seconds = 0.0
        self.last: str | None = None
        self.logits: Logits | None = None

    def go_on_from(self, step: str, path: Path) -> None:
        """Compare the next step with the logits that an earlier stage left at `path`."""
        self.last, self.logits = step, np.load(path, allow_pickle=False)

    def begin_anew(self) -> None:
        """Compare the next step with none: what comes before it computes something else on purpose."""
        self.last, self.logits = None, None

    def step(self, name: str, network: "Network", device: str = "cpu") -> None:
        """Run the sample through this step's network; StageError if its outputs have another shape than before."""
        from raq.model.evaluation import outputs_and_parts

        started = time.perf_counter()
        found, parts = outputs_and_parts(network, self.dataset, self.chosen, self.scorer, device)
        if self.logits is not None and self.logits.shape != found.shape:
            raise StageError(
                f"the step {name} gives outputs {list(found.shape)}, and {self.last} {list(self.logits.shape)}",
                "the graph is specialised to a size; name the axes that vary in raq.Data(dynamic_axes=...)",
            )
        value = self.scorer.value_of(parts)
        classes = self.scorer.metric.is_top1
        self.rows.append(compare(name, found, value, len(self.chosen), self.last, self.logits, classes=classes))
        self.last, self.logits = name, found
        self.seconds += time.perf_counter() - started

    def finish(self, path: Path) -> dict[str, Any]:
        """Leave the last step's logits at `path` for the next stage; the rows and seconds, for this one's results."""
        assert self.logits is not None
        np.save(path, self.logits)
        return {"parity": self.rows, "proof_s": round(self.seconds, 3)}
