"""How the Triton kernels are called: tiles by the layer's shape, and one launch for a layer and its epilogue."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

from raq.kernels.triton_kernels import conv_kernel, depthwise_kernel

# Kernels must round as reference.finish does: a product and a sum stay two roundings.
EXACT = {"enable_fp_fusion": False}


@dataclass(frozen=True)
class Tile:
    """Pixels, channels and depth of what a program computes, its warps, and how many loads are under way."""

    pixels: int
    channels: int
    depth: int
    warps: int = 4
    stages: int = 3

    def keywords(self) -> dict[str, int]:
        """As a matrix kernel takes it."""
        return {"BM": self.pixels, "BN": self.channels, "BK": self.depth, **self.meta()}

    def meta(self) -> dict[str, int]:
        """What Triton itself takes of it."""
        return {"num_warps": self.warps, "num_stages": self.stages}


def tile_of(channels_in: int, channels_out: int) -> Tile:
    """The tile for a layer of so many channels a group. By thought alone: no GPU has chosen it yet.

    int8 tensor cores multiply 16 x 32 by 32 x 8 at a time, and Hopper's 64 x 32 by 32 x n.
    """
    channels = min(128, max(16, triton.next_power_of_2(channels_out)))
    depth = 128 if channels_in >= 128 else 64 if channels_in >= 64 else 32
    return Tile(128, channels, depth, 8 if channels == 128 else 4)


def convolve(
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
    tile: Tile | None = None,
) -> Tensor:
    """`operators.int8_conv2d` by a Triton kernel, channels last."""
    data = data.contiguous(memory_format=torch.channels_last)
    n, _, height, width = data.shape
    outputs, kh, kw, inputs = weight.shape
    out_height = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    out_width = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = torch.empty(
        (n, outputs, out_height, out_width), dtype=torch.float32 if inverse_scale is None else torch.int8,
        device=data.device, memory_format=torch.channels_last,
    )  # fmt: skip
    if addend is not None:
        addend = addend.contiguous(memory_format=torch.channels_last)
    pixels = n * out_height * out_width
    tensors = (data, weight, scale, bias, out if addend is None else addend, out)
    sizes = (pixels, height, width, out_height, out_width, addend_scale, ceiling or 0.0, inverse_scale or 1.0)
    shape: dict[str, Any] = {
        "KH": kh, "KW": kw, "SH": stride[0], "SW": stride[1], "PH": padding[0], "PW": padding[1],
        "DH": dilation[0], "DW": dilation[1], "ADDS": addend is not None, "RELU": relu,
        "CLIPS": ceiling is not None, "ROUNDS": inverse_scale is not None, **EXACT,
    }  # fmt: skip
    if inputs == 1 and outputs == groups and groups > 1:
        tile = tile or Tile(64, 64, 1)
        grid = (triton.cdiv(pixels, tile.pixels), triton.cdiv(outputs, tile.channels))
        keywords = {"C": outputs, "BM": tile.pixels, "BN": tile.channels, **tile.meta()}
        _launched(depthwise_kernel)[grid](*tensors, *sizes, **shape, **keywords)
        return out
    tile = tile or tile_of(inputs, outputs // groups)
    blocks = (triton.cdiv(pixels, tile.pixels), triton.cdiv(outputs // groups, tile.channels), groups)
    keywords = {"C": inputs, "K": outputs // groups, "GROUPS": groups, **tile.keywords()}
    _launched(conv_kernel)[blocks](*tensors, *sizes, **shape, **keywords)
    return out


def _launched(kernel: Any) -> Any:
    """A kernel as compilers of torch see it; under Triton's interpreter, which they do not know, as it is."""
    return wrap_triton(kernel) if isinstance(kernel, triton.runtime.JITFunction) else kernel
