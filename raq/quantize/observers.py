"""What watches activations while a network is calibrated: torchao's observers, and two that choose a range otherwise.

Both keep 2,048 counts of all that they saw, whatever the number of images, as torchao's histogram observer does; their
ranges hold whole bins, and 0.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchao.quantization.pt2e import HistogramObserver, MinMaxObserver, MovingAverageMinMaxObserver

STRIDE = 8  # bins from one end that is tried to the next
EMPTY = 1e-9  # of a distribution, in a bin that holds nothing but what was clipped into it


class PercentileObserver(HistogramObserver):
    """The range that holds `percentile` percent of the activations on either side.

    Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 4.2.
    """

    def __init__(self, percentile: float = 99.99, **settings: Any) -> None:
        super().__init__(**settings)
        self.percentile = percentile

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        """The bounds from which the scale and zero point follow (HistogramObserver searches here)."""
        share = torch.cumsum(self.histogram.double(), 0) / self.histogram.double().sum()
        tail = 1 - self.percentile / 100
        first = int((share <= tail).sum())  # bins that lie wholly within the lower tail
        last = int((share < 1 - tail).sum())
        width = (self.max_val - self.min_val) / self.bins
        low, high = self.min_val + width * first, self.min_val + width * min(last + 1, self.bins)
        return (self.min_val, self.max_val) if self.percentile == 100 else (low, high)


class EntropyObserver(HistogramObserver):
    """The range whose rounding changes the distribution of the activations least, by the Kullback-Leibler divergence.

    Migacz 2017, 8-bit Inference with TensorRT; Wu et al. 2020, section 4.2. There ranges are symmetric; here the upper
    end is searched first, and then the lower one, as for integers that need not be symmetric around 0 (a symmetric
    scheme then takes the farther one for both). A range has as many bins as there are integers, or more: of a single
    value a thousand times as far as the others, it is too wide.
    """

    def _non_linear_param_search(self) -> tuple[Tensor, Tensor]:
        """The bounds from which the scale and zero point follow."""
        width = float(self.max_val - self.min_val) / self.bins
        if not width > 0:
            return self.min_val, self.max_val
        levels = int(self.quant_max - self.quant_min) + 1
        zero = min(max(int(-float(self.min_val) / width), 0), self.bins - 1)
        counts = without_zeros(self.histogram.double().cpu().numpy(), zero)
        uppers = [end for end in range(self.bins, 0, -STRIDE) if end > max(zero, levels - 1)]
        upper = min(uppers, key=lambda end: divergence(counts, 0, end, levels))
        lowers = [end for end in range(0, zero + 1, STRIDE) if upper - end >= levels]
        lower = min(lowers, key=lambda end: divergence(counts, end, upper, levels), default=0)
        low, high = self.min_val + width * lower, self.min_val + width * upper
        return (low if lower else self.min_val), (high if upper < self.bins else self.max_val)


def without_zeros(counts: NDArray[np.float64], zero: int) -> NDArray[np.float64]:
    """The counts [bins] with the bin of 0 as its neighbours are: a ReLU's zeros are integers in any range."""
    near = counts[max(zero - 1, 0) : zero + 2].sum() - counts[zero]
    found = counts.copy()
    found[zero] = min(counts[zero], near / max(1, len(counts[max(zero - 1, 0) : zero + 2]) - 1))
    return found


def divergence(counts: NDArray[np.float64], low: int, high: int, levels: int) -> float:
    """The Kullback-Leibler divergence of the counts [bins], clipped to the bins from `low` to before `high`, from what
    is left when these become so many levels, each spread evenly over those of its bins that hold something."""
    own = counts[low:high]
    clipped = own.copy()
    clipped[0] += counts[:low].sum()
    clipped[-1] += counts[high:].sum()
    level = np.arange(len(own)) * levels // len(own)
    sums, filled = np.bincount(level, own), np.bincount(level, own > 0)
    spread = np.where(own > 0, (sums / np.maximum(filled, 1))[level], 0.0)
    if not spread.any():
        return float("inf")
    wanted, given = clipped / clipped.sum(), np.maximum(spread / spread.sum(), EMPTY)
    seen = wanted > 0
    return float((wanted[seen] * np.log(wanted[seen] / given[seen])).sum())


OBSERVERS = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageMinMaxObserver,
    "percentile": PercentileObserver,
    "entropy": EntropyObserver,
}
