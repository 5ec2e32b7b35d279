"""The parity chain: does each step from FP32 to the saved artifact still compute what the step before it computed?

Compared on the same images: top-1, and the signal-to-quantization-noise ratio of the logits. Steps, in order:
fp32 (the network), simulated (the graph with fake quantizers), converted (the quantized program, run by torch's
reference kernels), lowered (the package, as compiled), reloaded (the saved file in a fresh process with torch alone).
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def sqnr_db(reference: Logits, given: Logits) -> float | None:
    """10 log10 of signal power over noise power, over all logits [n, classes]; None if the two are equal.

    Widrow and Kollar, Quantization Noise (2008), chapter 1. Logits that are not finite give minus infinity's stand-in,
    -300 dB, so that no comparison lets them through.
    """
    if not (np.isfinite(reference).all() and np.isfinite(given).all()):
        return -300.0
    noise = float(np.square(reference.astype(np.float64) - given).sum())
    if noise == 0:
        return None
    signal = float(np.square(reference.astype(np.float64)).sum())
    return 10 * math.log10(signal / noise) if signal else -300.0


def compare(
    step: str, logits: Logits, labels: NDArray[Any], before: str | None = None, reference: Logits | None = None
) -> dict[str, Any]:
    """One step's row, as plain values: logits [n, classes], labels [n]; `reference`: the logits of the step `before`.

    changed: images whose predicted class is another one; equal: whether all logits are the same.
    """
    predicted = logits.argmax(1)
    row: dict[str, Any] = {"step": step, "images": len(labels), "top1": float((predicted == labels).mean())}
    if reference is None:
        return {**row, "against": None, "sqnr_db": None, "equal": None, "changed": None}
    ratio = sqnr_db(reference, logits)
    changed = int((predicted != reference.argmax(1)).sum())
    return {**row, "against": before, "sqnr_db": ratio, "equal": ratio is None, "changed": changed}


def sample(test_count: int, images: int | None, seed: int) -> NDArray[np.int64]:
    """Which test images the steps are compared on: a fixed random sample, in order; None: all of them."""
    chosen = np.random.default_rng(seed).permutation(test_count)[:images]
    return np.sort(chosen)
