"""How the Triton kernels are called: tiles by the layer's shape, and one launch for a layer and its epilogue."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

from raq.kernels.reference import Epilogue, Geometry
from raq.kernels.triton_kernels import raq_int8_conv, raq_int8_depthwise

LEAST = -3.4028234663852886e38  # of float32: what triton_kernels._apart compares with


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


def convolve(data: Tensor, weight: Tensor, after: Epilogue, where: Geometry, tile: Tile | None = None) -> Tensor:
    """`operators.int8_conv2d` by a Triton kernel, channels last. tile: None for the one of the layer's shape."""
    data = data.contiguous(memory_format=torch.channels_last)
    n, _, height, width = data.shape
    outputs, kh, kw, inputs = weight.shape
    (sh, sw), (ph, pw), (dh, dw), groups = where.stride, where.padding, where.dilation, where.groups
    out_height, out_width = (
        (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1,
        (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1,
    )
    rounds, adds = after.inverse_scale is not None, after.addend is not None
    out = torch.empty(
        (n, outputs, out_height, out_width), dtype=torch.int8 if rounds else torch.float32, device=data.device,
        memory_format=torch.channels_last,
    )  # fmt: skip
    addend = out if after.addend is None else after.addend.contiguous(memory_format=torch.channels_last)
    pixels = n * out_height * out_width
    tensors = (data, weight, after.scale, after.bias, addend, out)
    sizes = (pixels, height, width, out_height, out_width)
    numbers = (after.addend_scale, after.ceiling or 0.0, after.inverse_scale or 1.0, LEAST)
    shape: dict[str, Any] = {
        "KH": kh, "KW": kw, "SH": sh, "SW": sw, "PH": ph, "PW": pw, "DH": dh, "DW": dw, "ADDS": adds,
        "RELU": after.relu, "CLIPS": after.ceiling is not None, "ROUNDS": rounds,
    }  # fmt: skip
    if inputs == 1 and outputs == groups and groups > 1:
        tile = tile or Tile(64, 64, 1)
        kernel, grid = raq_int8_depthwise, (triton.cdiv(pixels, tile.pixels), triton.cdiv(outputs, tile.channels), 1)
        shape |= {"C": outputs, "BM": tile.pixels, "BN": tile.channels, **tile.meta()}
    else:
        own = outputs // groups
        tile = tile or tile_of(inputs, own)
        kernel, grid = raq_int8_conv, (triton.cdiv(pixels, tile.pixels), triton.cdiv(own, tile.channels), groups)
        shape |= {"C": inputs, "K": own, "GROUPS": groups, **tile.keywords()}
    _launched(kernel)[grid](*tensors, *sizes, *numbers, **shape)
    return out


def _launched(kernel: Any) -> Any:
    """A kernel as compilers of torch see it; under Triton's interpreter, which they do not know, as it is."""
    return wrap_triton(kernel) if isinstance(kernel, triton.runtime.JITFunction) else kernel
