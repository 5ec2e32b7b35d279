"""Quantizers by backend: what is annotated, with which observers.

x86: int8 kernels of oneDNN through Inductor; activations uint8 per tensor, weights int8 per channel, symmetric.
Importing torchao's quantizer is also what registers Inductor's int8 fusions; without it a converted graph compiles to
float kernels in silence.
"""

from typing import Any

import torch
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import QuantizationConfig, X86InductorQuantizer

SMALLEST_SCALE = 2**-12
OBSERVERS = {"histogram": HistogramObserver, "minmax": MinMaxObserver, "moving-average": MovingAverageMinMaxObserver}


def x86_quantizer(*, qat: bool, observer: str = "histogram", reduce_range: bool = False) -> Quantizer:
    """The quantizer for Inductor on x86.

    observer: histogram, minmax or moving-average; of the activations, after training only (QAT has its own fake
    quantizers with moving averages). reduce_range: 7-bit activations, for CPUs without VNNI, whose int8 kernels
    add pairs of products in 16 bits and can saturate.
    """
    activation: Any = FusedMovingAvgObsFakeQuantize if qat else OBSERVERS[observer]
    weight: Any = FusedMovingAvgObsFakeQuantize if qat else PerChannelMinMaxObserver
    weight_arguments = {"observer": MovingAveragePerChannelMinMaxObserver} if qat else {}
    activations = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=127 if reduce_range else 255,
        qscheme=torch.per_tensor_affine,
        is_dynamic=False,
        observer_or_fake_quant_ctr=activation.with_args(eps=SMALLEST_SCALE),
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
