"""What the int8 kernels compute, by torch on any device: exact integer sums, then float32 steps in one fixed order."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

LOWEST, HIGHEST = -127, 127


@dataclass(frozen=True)
class Geometry:
    """Where a convolution's kernel goes: (height, width) each, and its groups."""

    stride: list[int] = field(default_factory=lambda: [1, 1])
    padding: list[int] = field(default_factory=lambda: [0, 0])
    dilation: list[int] = field(default_factory=lambda: [1, 1])
    groups: int = 1


@dataclass(frozen=True)
class Epilogue:
    """What follows the sums of a layer, in this order.

    scale, bias: float32 [channels], times the one, plus the other; addend: int8, shaped as the output, times
    addend_scale; relu, up to ceiling if there is one; inverse_scale: of int8 output, rounded from -127 to 127, None for
    float32.
    """

    scale: Tensor
    bias: Tensor
    addend: Tensor | None = None
    addend_scale: float = 1.0
    relu: bool = False
    ceiling: float | None = None
    inverse_scale: float | None = None

    def to(self, device: str | torch.device) -> "Epilogue":
        """The same, its tensors on a device."""
        addend = None if self.addend is None else self.addend.to(device)
        return replace(self, scale=self.scale.to(device), bias=self.bias.to(device), addend=addend)


def finish(sums: Tensor, after: Epilogue) -> Tensor:
    """What a kernel stores of int32 sums [..., channels]. Of convolutions' outputs the channels are last here, addends'
    too.

    Every operation rounds once to float32, halves to even, and none is fused with the next.
    """
    value = sums.to(torch.float32) * after.scale + after.bias
    if after.addend is not None:
        value = value + after.addend.to(torch.float32) * after.addend_scale
    if after.relu:
        value = value.clamp(0.0, after.ceiling)
    if after.inverse_scale is None:
        return value
    return (value * after.inverse_scale).clamp(LOWEST, HIGHEST).round().to(torch.int8)


def conv2d(data: Tensor, weight: Tensor, after: Epilogue, where: Geometry) -> Tensor:
    """`operators.int8_conv2d`: [n, k, oh, ow], channels last in memory."""
    sums = conv2d_sums(data, weight, where)
    addend = None if after.addend is None else after.addend.permute(0, 2, 3, 1)
    found = finish(sums, Epilogue(**{**vars(after), "addend": addend}))
    return found.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def conv2d_sums(data: Tensor, weight: Tensor, where: Geometry) -> Tensor:
    """The int32 sums [n, oh, ow, k] of a convolution of int8 data [n, c, h, w] and weights [k, kh, kw, c / groups].

    float64 holds every sum exactly: a product is at most 2**14, and no kernel has 2**39 weights.
    """
    kernel = weight.permute(0, 3, 1, 2).double()
    sums = torch.nn.functional.conv2d(
        data.double(), kernel, None, where.stride, where.padding, where.dilation, where.groups
    )
    return sums.permute(0, 2, 3, 1).round().to(torch.int32)  # an algorithm by transforms is not exact


def linear_sums(data: Tensor, weight: Tensor) -> Tensor:
    """The int32 sums [..., k] of int8 data [..., c] and weights [k, c]."""
    return (data.double() @ weight.double().t()).round().to(torch.int32)
