"""How the Triton kernels are called: tiles by the layer's shape, and one launch for a layer and its epilogue."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

from raq.kernels.reference import Epilogue, Geometry
from raq.kernels.triton_kernels import raq_int8_conv, raq_int8_depthwise

MIN_FLOAT32 = -3.4028234663852886e38  # of float32: what triton_kernels._apart compares with
LIKELY_BATCH, MULTIPROCESSORS = 128, 132  # samples that tiles are chosen for; of an H100 or H200


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


def tile_of(channels_in: int, channels_out: int, pixels: int) -> Tile:
    """The tile for a layer of so many channels a group and of so many output pixels a sample. By thought alone: no GPU
    has chosen it yet.

    int8 tensor cores multiply 16 x 32 by 32 x 8 at a time, and Hopper's 64 x 32 by 32 x n. The largest tile with which
    every multiprocessor has two programs at LIKELY_BATCH; a depth that divides the channels.
    """
    depth = next((deep for deep in (128, 64, 32) if channels_in % deep == 0), 64 if channels_in > 64 else 32)
    channels = max(16, triton.next_power_of_2(channels_out))
    for high, wide, warps in ((128, 128, 8), (128, 64, 4)):
        tile = Tile(high, min(wide, channels), depth, warps if channels >= wide else 4)
        programs = triton.cdiv(LIKELY_BATCH * pixels, high) * triton.cdiv(channels_out, tile.channels)
        if programs >= 2 * MULTIPROCESSORS:
            return tile
    return Tile(64, min(64, channels), depth)


def convolve(
    data: Tensor, weight: Tensor, after: Epilogue, where: Geometry, tile: Tile | None = None, *, direct: bool = False
) -> Tensor:
    """`operators.int8_conv2d` by a Triton kernel, channels last.

    tile: None for the one of the layer's shape; direct: launched by Triton, not by way of torch's operator for
    compilers, which takes longer than a kernel does.
    """
    data = data.contiguous(memory_format=torch.channels_last)
    n, _, height, width = data.shape
    outputs, kh, kw, inputs = weight.shape
    (sh, sw), (ph, pw), (dh, dw), groups = where.stride, where.padding, where.dilation, where.groups
    out_height, out_width = (
        (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1,
        (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1,
    )
    rounds, adds = after.inverse_scale is not None, after.addend is not None
    # plain in memory and turned afterwards: Inductor fills what is made channels last, a pass over it for nothing
    out = torch.empty(
        (n, out_height, out_width, outputs), dtype=torch.int8 if rounds else torch.float32, device=data.device
    )
    addend = data if after.addend is None else after.addend.contiguous(memory_format=torch.channels_last)
    pixels = n * out_height * out_width
    tensors = (data, weight.contiguous(), after.scale.contiguous(), after.bias.contiguous(), addend, out)
    numbers = (after.addend_scale, after.ceiling or 0.0, after.inverse_scale or 1.0, MIN_FLOAT32)
    shape: dict[str, Any] = {
        "H": height, "W": width, "OH": out_height, "OW": out_width, "KH": kh, "KW": kw, "SH": sh, "SW": sw,
        "PH": ph, "PW": pw, "DH": dh, "DW": dw, "ADDS": adds, "RELU": after.relu, "CLIPS": after.ceiling is not None,
        "ROUNDS": rounds,
    }  # fmt: skip
    own = outputs // groups
    if inputs == 1 and outputs == groups and groups > 1:
        tile = tile or Tile(64, 64, 1)
        kernel, tiles, sets = raq_int8_depthwise, triton.cdiv(outputs, tile.channels), 1
        shape |= {"C": outputs, "BM": tile.pixels, "BN": tile.channels, **tile.meta()}
    else:
        tile = tile or tile_of(inputs, own, out_height * out_width)
        kernel, tiles, sets = raq_int8_conv, triton.cdiv(own, tile.channels), groups
        shape |= {"C": inputs, "K": own, "GROUPS": groups, **tile.keywords()}
    grid = (triton.cdiv(pixels, tile.pixels) * tiles, sets, 1)
    (kernel if direct else _launched(kernel))[grid](*tensors, pixels, *numbers, **shape)
    return out.permute(0, 3, 1, 2)


def _launched(kernel: Any) -> Any:
    """A kernel as compilers of torch see it; under Triton's interpreter, which they do not know, as it is."""
    return wrap_triton(kernel) if isinstance(kernel, triton.runtime.JITFunction) else kernel
