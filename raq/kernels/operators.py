"""The operators raq::int8_conv2d and raq::int8_linear: Triton kernels on GPUs, the integer reference on CPUs.

They are torch.library.triton_ops: compilers look into them, so that a package holds the kernels and needs torch alone.
Importing this registers them.
"""

import torch
from torch import Tensor

from raq.kernels.launch import convolve
from raq.kernels.reference import conv2d_sums, finish, linear_sums


@torch.library.triton_op("raq::int8_conv2d", mutates_args=())
def int8_conv2d(
    data: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    addend_scale: float,
    relu: bool,
    ceiling: float | None,
    inverse_scale: float | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """A convolution of int8 data [n, c, h, w] with int8 weights [k, kh, kw, c / groups], and what follows it.

    A sum times scale [k] plus bias [k], plus addend (int8, as the output) times addend_scale, ReLU if `relu`, up to
    `ceiling` if that is given; then, unless inverse_scale is None and float32 is given, times inverse_scale, rounded to
    int8 from -127 to 127.
    """
    return convolve(
        data, weight, scale, bias, addend, addend_scale, relu, ceiling, inverse_scale, stride, padding, dilation, groups
    )


@torch.library.triton_op("raq::int8_linear", mutates_args=())
def int8_linear(
    data: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    relu: bool,
    ceiling: float | None,
    inverse_scale: float | None,
) -> Tensor:
    """A linear layer of int8 data [..., c] with int8 weights [k, c], and what follows it (as `int8_conv2d`)."""
    flat = data.reshape(-1, data.shape[-1], 1, 1)
    kernel = weight.reshape(weight.shape[0], 1, 1, weight.shape[1])
    found = convolve(flat, kernel, scale, bias, None, 1.0, relu, ceiling, inverse_scale, [1, 1], [0, 0], [1, 1], 1)
    return found.reshape(*data.shape[:-1], weight.shape[0])


@int8_conv2d.register_kernel("cpu")  # type: ignore[untyped-decorator]
def _(
    data: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    addend: Tensor | None,
    addend_scale: float,
    relu: bool,
    ceiling: float | None,
    inverse_scale: float | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    sums = conv2d_sums(data, weight, stride, padding, dilation, groups)
    last = None if addend is None else addend.permute(0, 2, 3, 1)
    found = finish(sums, scale, bias, last, addend_scale, relu, ceiling, inverse_scale)
    return found.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@int8_linear.register_kernel("cpu")  # type: ignore[untyped-decorator]
def _(
    data: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    relu: bool,
    ceiling: float | None,
    inverse_scale: float | None,
) -> Tensor:
    return finish(linear_sums(data, weight), scale, bias, None, 1.0, relu, ceiling, inverse_scale)
