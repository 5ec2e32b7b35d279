"""The operators raq::int8_conv2d and raq::int8_linear: Triton kernels on GPUs, the integer reference on CPUs.

They are torch.library.triton_ops: compilers look into them, so that a package holds the kernels and needs torch alone.
Importing this registers them.
"""

import torch
from torch import Tensor

from raq.kernels.launch import convolve
from raq.kernels.reference import Epilogue, Geometry, conv2d, finish, linear_sums


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

    Arguments as those of `Epilogue` and `Geometry`, which operators of torch cannot take. The output [n, k, oh, ow] is
    int8, or float32 if inverse_scale is None.
    """
    after = Epilogue(scale, bias, addend, addend_scale, relu, ceiling, inverse_scale)
    compute = conv2d if data.device.type == "cpu" else convolve
    return compute(data, weight, after, Geometry(stride, padding, dilation, groups))


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
    """A linear layer of int8 data [..., c] with int8 weights [k, c], and what follows it: [..., k] as `int8_conv2d`."""
    after = Epilogue(scale, bias, relu=relu, ceiling=ceiling, inverse_scale=inverse_scale)
    if data.device.type == "cpu":
        return finish(linear_sums(data, weight), after)
    flat = data.reshape(-1, data.shape[-1], 1, 1)
    found = convolve(flat, weight.reshape(weight.shape[0], 1, 1, weight.shape[1]), after, Geometry())
    return found.reshape(*data.shape[:-1], weight.shape[0])
