"""Triton's kernels under its interpreter, on CPU tensors, against the integer reference: one line of JSON.

Run by test_kernels.py: whether kernels are interpreted is decided when they are imported.
"""

import itertools
import json

import torch

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


def main() -> None:
    """Which differ, how many values were compared, how many different ones there were, and halves that were rounded."""
    torch.manual_seed(0)
    wrong, values, distinct, ends = [], 0, [], set()
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
        given = (data, weight, Epilogue(scale, bias, other, 0.02, relu, ceiling, inverse), where)
        wanted = conv2d(*given)
        for tile in (Tile(16, 16, 32), None):
            found = convolve(*given, tile=tile)
            if not torch.equal(found, wanted) or found.dtype != wanted.dtype:
                wrong.append(f"{name}, {adds}, {relu}, {ceiling}, {inverse}, {tile}")
            values += found.numel()
            if inverse is not None:
                distinct.append(len(found.unique()))
                ends |= {int(found.min()), int(found.max())}
    print(
        json.dumps(
            {"wrong": wrong, "values": values, "distinct": min(distinct), "ends": sorted(ends), "halves": halves()}
        )
    )


def halves() -> list[float]:
    """What sums of 1, 3, 5, -1, -3 times a half become: halves go to even."""
    data = torch.tensor([1, 3, 5, -1, -3], dtype=torch.int8).reshape(5, 1, 1, 1)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.int8)
    after = Epilogue(torch.ones(1), torch.zeros(1), inverse_scale=0.5)
    return convolve(data, weight, after, Geometry()).flatten().tolist()


if __name__ == "__main__":
    main()
