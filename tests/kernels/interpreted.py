"""Triton's kernels against the integer reference, on odd shapes: one line of JSON.

Run by test_kernels.py under Triton's interpreter, on CPU tensors: whether kernels are interpreted is decided when they
are imported. On a GPU gpu/pieces.py compares.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raq.kernels.launch import Tile, convolve
from raq.kernels.reference import Epilogue, Geometry, conv2d, conv2d_sums

SHAPES = {  # n, c, h, w, outputs, kernel, stride, padding, dilation, groups
    "first layer": (2, 3, 9, 7, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "odd and strided": (1, 5, 8, 8, 7, (3, 3), (2, 1), (1, 0), (1, 1), 1),
    "1x1": (2, 64, 5, 5, 33, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "dilated": (2, 40, 6, 5, 20, (3, 3), (1, 1), (2, 2), (2, 2), 1),
    "depthwise": (2, 12, 7, 7, 12, (3, 3), (2, 2), (1, 1), (1, 1), 12),
    "grouped": (3, 12, 7, 6, 24, (5, 3), (1, 1), (2, 1), (1, 1), 4),
    "one multiplier of two": (1, 6, 5, 5, 12, (3, 3), (1, 1), (1, 1), (1, 1), 6),
    "tall": (1, 70, 4, 4, 20, (3, 1), (1, 1), (1, 0), (1, 1), 1),
}
ENDS = [(False, False, None, 40.0), (True, True, None, 30.0), (False, True, 2.5, 45.0), (True, False, None, None)]


Compute = Callable[[Tensor, Tensor, Epilogue, Geometry, Tile | None], Tensor]


def compare(compute: Compute, device: str = "cpu") -> dict[str, Any]:
    """Which differ from the reference, how many values were compared, of int8 the fewest different ones and the
    outermost, and halves that were rounded. compute: a convolution, on this device."""
    torch.manual_seed(0)
    wrong: list[str] = []
    values, distinct, ends = 0, [], set()
    for (name, shape), (adds, relu, ceiling, inverse) in itertools.product(SHAPES.items(), ENDS):
        n, c, h, w, outputs, kernel, stride, padding, dilation, groups = shape
        data = torch.randint(-127, 128, (n, c, h, w), dtype=torch.int8).contiguous(memory_format=torch.channels_last)
        weight = torch.randint(-127, 128, (outputs, *kernel, c // groups), dtype=torch.int8)
        # sums have a standard deviation of 73 * 73 by the root of their products: outputs reach -127 and 127, and
        # most lie between
        products = kernel[0] * kernel[1] * (c // groups)
        scale, bias = (1 + torch.rand(outputs)) / (73 * 73 * products**0.5), torch.randn(outputs)
        where = Geometry(list(stride), list(padding), list(dilation), groups)
        sums = conv2d_sums(data, weight, where)
        other = torch.randint(-127, 128, sums.permute(0, 3, 1, 2).shape, dtype=torch.int8) if adds else None
        after = Epilogue(scale, bias, other, 0.02, relu, ceiling, inverse)
        wanted = conv2d(data, weight, after, where)
        for tile in (Tile(16, 16, 32), None):
            found = compute(data.to(device), weight.to(device), after.to(device), where, tile).cpu()
            if not torch.equal(found, wanted) or found.dtype != wanted.dtype:
                wrong.append(f"{name}, {adds}, {relu}, {ceiling}, {inverse}, {tile}")
            values += found.numel()
            if inverse is not None:
                distinct.append(len(found.unique()))
                ends |= {int(found.min()), int(found.max())}
    return {
        "wrong": wrong, "values": values, "distinct": min(distinct), "ends": sorted(ends),
        "halves": halves(compute, device),
    }  # fmt: skip


def halves(compute: Compute, device: str) -> list[float]:
    """What sums of 1, 3, 5, -1, -3 times a half become: halves go to even."""
    data = torch.tensor([1, 3, 5, -1, -3], dtype=torch.int8).reshape(5, 1, 1, 1)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.int8)
    after = Epilogue(torch.ones(1), torch.zeros(1), inverse_scale=0.5).to(device)
    return compute(data.to(device), weight.to(device), after, Geometry(), None).flatten().tolist()


if __name__ == "__main__":
    print(json.dumps(compare(convolve)))
