"""Quantizers by backend: what is annotated, with which observers.

x86: int8 kernels of oneDNN through Inductor; activations uint8 per tensor, weights int8 per channel, symmetric.
Importing torchao's quantizer is also what registers Inductor's int8 fusions; without it a converted graph compiles to
float kernels in silence.
"""

from typing import Any

import torch
from torch import fx
from torchao.quantization.pt2e import (
    FakeQuantizeBase,
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverBase,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer

from raq.errors import StageError
from raq.experiment import Calibration
from raq.quantize.capture import is_layer, layer_name

SMALLEST_SCALE = 2**-12


class PercentileObserver(HistogramObserver):
    """The range that holds `percentile` percent of the activations on either side, of one histogram of all of them.

    Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 4.2. Like the histogram observer it keeps
    2,048 counts, whatever the number of images. Ranges hold whole bins, and 0.
    """

    def __init__(self, percentile: float = 99.99, **settings: Any) -> None:
        super().__init__(**settings)
        self.percentile = percentile

    def _non_linear_param_search(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The bounds from which the scale and zero point follow (HistogramObserver searches here)."""
        share = torch.cumsum(self.histogram.double(), 0) / self.histogram.double().sum()
        tail = 1 - self.percentile / 100
        first = int((share <= tail).sum())  # bins that lie wholly within the lower tail
        last = int((share < 1 - tail).sum())
        width = (self.max_val - self.min_val) / self.bins
        low, high = self.min_val + width * first, self.min_val + width * min(last + 1, self.bins)
        return (self.min_val, self.max_val) if self.percentile == 100 else (low, high)


OBSERVERS = {
    "histogram": HistogramObserver,
    "minmax": MinMaxObserver,
    "moving-average": MovingAverageMinMaxObserver,
    "percentile": PercentileObserver,
}


def x86_quantizer(*, qat: bool, calibration: Calibration | None = None, reduce_range: bool = False) -> Quantizer:
    """The quantizer for Inductor on x86.

    calibration: which observer watches the activations, after training only (QAT has its own fake quantizers with
    moving averages). reduce_range: 7-bit activations, for CPUs without VNNI, whose int8 kernels add pairs of products
    in 16 bits and can saturate.
    """
    activation: Any = FusedMovingAvgObsFakeQuantize
    arguments: dict[str, Any] = {}
    if not qat:
        calibration = calibration or Calibration()
        activation = OBSERVERS[calibration.observer]
        arguments = {"percentile": calibration.percentile} if calibration.observer == "percentile" else {}
    weight: Any = FusedMovingAvgObsFakeQuantize if qat else PerChannelMinMaxObserver
    weight_arguments = {"observer": MovingAveragePerChannelMinMaxObserver} if qat else {}
    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=127 if reduce_range else 255,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=activation.with_args(eps=SMALLEST_SCALE, **arguments),
    )
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-128,
        quant_max=127,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        is_dynamic=False,
        observer_or_fake_quant_ctr=weight.with_args(eps=SMALLEST_SCALE, **weight_arguments),
    )
    return X86InductorQuantizer().set_global(QuantizationConfig(activations, activations, weights, None, qat))


QUANTIZERS = {"x86": x86_quantizer}


def refuse_unannotated(prepared: fx.GraphModule, backend: str) -> None:
    """StageError if a prepared graph has layers and no observer: the quantizer took none of them, and said nothing."""
    found = [node for node in prepared.graph.nodes if is_layer(node)]
    if found and not any(isinstance(m, (ObserverBase, FakeQuantizeBase)) for m in prepared.modules()):
        named = ", ".join(layer_name(node) for node in found[:5])
        raise StageError(
            f"the {backend} quantizer has annotated none of the model's {len(found)} layers ({named}, ...)",
            "the model would stay in float: torch and torchao must be a pair that belongs together; see 'raq doctor'",
        )
