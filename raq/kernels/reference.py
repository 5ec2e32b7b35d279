"""What the int8 kernels compute, by torch on any device: exact integer sums, then float32 steps in one fixed order."""

import torch
from torch import Tensor

LOWEST, HIGHEST = -127, 127


def finish(
    total: Tensor,
    scale: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    addend_scale: float,
    relu: bool,
    ceiling: float | None,
    inverse_scale: float | None,
) -> Tensor:
    """Of sums [..., channels] of int32 the values that a kernel stores: int8 in steps of 1 / inverse_scale, or float32.

    scale, bias: float32 [channels]. addend: int8 [..., channels], in steps of addend_scale. Every operation rounds once
    to float32, halves to even, and none is fused with the next. ceiling: of the ReLU, as ReLU6 has it.
    """
    value = total.to(torch.float32) * scale + bias
    if addend is not None:
        value = value + addend.to(torch.float32) * addend_scale
    if relu:
        value = value.clamp(0.0, ceiling)
    if inverse_scale is None:
        return value
    return (value * inverse_scale).clamp(LOWEST, HIGHEST).round().to(torch.int8)


def conv2d_sums(
    data: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """The sums [n, oh, ow, k] of int32 of a convolution of int8 data [n, c, h, w] and weights [k, kh, kw, c / groups].

    float64 holds every sum exactly: a product is at most 2**14, and no kernel has 2**39 weights.
    """
    kernel = weight.permute(0, 3, 1, 2).double()
    sums = torch.nn.functional.conv2d(data.double(), kernel, None, stride, padding, dilation, groups)
    return sums.permute(0, 2, 3, 1).to(torch.int32)


def linear_sums(data: Tensor, weight: Tensor) -> Tensor:
    """The sums [..., k] of int32 of int8 data [..., c] and weights [k, c]."""
    return (data.double() @ weight.double().t()).to(torch.int32)
