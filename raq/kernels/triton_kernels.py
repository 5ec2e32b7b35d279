"""Triton kernels of int8 convolutions: implicit matrix products over channels-last data, and depthwise ones.

Both end in `_finish`: scale and bias by channel, an int8 addend, ReLU, and rounding to int8, in registers. Data are
[n, h, w, c] in memory, weights [k, kh, kw, c / groups]. A linear layer is a convolution of one pixel.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

import triton
import triton.language as tl

LOWEST, HIGHEST = tl.constexpr(-127.0), tl.constexpr(127.0)
# Adding and taking away 1.5 * 2**23 rounds a float32 of less than 2**22 to the nearest integer, halves to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def _apart(product, least):
    """A product that is rounded before anything is added to it, as the reference has it.

    Compilers fuse a product with a sum, whose one rounding may give another integer; Triton's option against that does
    not reach packages, as torch knows no such option of a kernel. What stands between the two keeps them apart.
    `least` is the least float32, an argument because a comparison with a constant would be left out.
    """
    return tl.maximum(product, least)


@triton.jit
def _finish(
    sums, scale, bias, addend, out, places, channels, inside, mask, addend_scale, ceiling, inverse_scale, least,
    ADDS: tl.constexpr, RELU: tl.constexpr, CLIPS: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """Store what sums [pixels, channels] come to (reference.finish). inside: which of the channels there are.

    Packages hand Python's floats over in 64 bits, in which everything after them would be computed.
    """
    least, ceiling = tl.cast(least, tl.float32), tl.cast(ceiling, tl.float32)
    addend_scale, inverse_scale = tl.cast(addend_scale, tl.float32), tl.cast(inverse_scale, tl.float32)
    by = tl.load(scale + channels, mask=inside, other=0.0)
    plus = tl.load(bias + channels, mask=inside, other=0.0)
    value = _apart(sums.to(tl.float32) * by[None, :], least) + plus[None, :]
    if ADDS:
        value += _apart(tl.load(addend + places, mask=mask, other=0).to(tl.float32) * addend_scale, least)
    if RELU:
        value = tl.maximum(value, 0.0)
    if CLIPS:
        value = tl.minimum(value, ceiling)
    if ROUNDS:
        value = tl.minimum(tl.maximum(value * inverse_scale, LOWEST), HIGHEST)
        tl.store(out + places, ((value + ROUNDER) - ROUNDER).to(tl.int8), mask=mask)
    else:
        tl.store(out + places, value, mask=mask)


@triton.jit
def raq_int8_conv(
    data, weight, scale, bias, addend, out, pixels, addend_scale, ceiling, inverse_scale, least,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ADDS: tl.constexpr, RELU: tl.constexpr, CLIPS: tl.constexpr, ROUNDS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """BM output pixels of BN output channels of one group; those of the same pixels follow one another, for the cache.

    C, K: channels of a group, in and out.
    """
    TILES: tl.constexpr = (K + BN - 1) // BN
    pixel = (tl.program_id(0) // TILES) * BM + tl.arange(0, BM)
    channel = (tl.program_id(0) % TILES) * BN + tl.arange(0, BN)
    group = tl.program_id(1)
    there, wanted = pixel < pixels, channel < K
    column, row = pixel % OW, (pixel // OW) % OH
    image = (pixel // (OW * OH)).to(tl.int64)
    top, left = row * SH - PH, column * SW - PW
    depth, begin = tl.arange(0, BK), data + image * (H * W * C * GROUPS) + group * C
    rows = weight + (group * K + channel).to(tl.int64) * (KH * KW * C)
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    TAPS: tl.constexpr = KH * KW
    if C < BK:  # steps go through taps and channels as one axis
        for first in range(0, TAPS * C, BK):
            place = first + depth
            tap = place // C
            y, x = top[:, None] + (tap // KW)[None, :] * DH, left[:, None] + (tap % KW)[None, :] * DW
            valid = there[:, None] & (place < TAPS * C)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            a = tl.load(begin[:, None] + (y * W + x) * (C * GROUPS) + (place % C)[None, :], mask=valid, other=0)
            b = tl.load(rows[None, :] + place[:, None], mask=wanted[None, :] & (place < TAPS * C)[:, None], other=0)
            sums = tl.dot(a, b, acc=sums, out_dtype=tl.int32)
    else:
        PARTS: tl.constexpr = (C + BK - 1) // BK
        for step in range(0, TAPS * PARTS):
            tap, place = step // PARTS, (step % PARTS) * BK + depth
            y, x = top + (tap // KW) * DH, left + (tap % KW) * DW
            valid = there & (y >= 0) & (y < H) & (x >= 0) & (x < W)
            a = tl.load(
                (begin + (y * W + x) * (C * GROUPS))[:, None] + place[None, :],
                mask=valid[:, None] & (place < C)[None, :], other=0,
            )  # fmt: skip
            b = tl.load(rows[None, :] + tap * C + place[:, None], mask=wanted[None, :] & (place < C)[:, None], other=0)
            sums = tl.dot(a, b, acc=sums, out_dtype=tl.int32)
    every = group * K + channel
    places = pixel.to(tl.int64)[:, None] * (K * GROUPS) + every[None, :]
    stored = there[:, None] & wanted[None, :]
    _finish(sums, scale, bias, addend, out, places, every, wanted, stored, addend_scale, ceiling, inverse_scale, least,
            ADDS, RELU, CLIPS, ROUNDS)  # fmt: skip


@triton.jit
def raq_int8_depthwise(
    data, weight, scale, bias, addend, out, pixels, addend_scale, ceiling, inverse_scale, least,
    H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
    SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, DH: tl.constexpr, DW: tl.constexpr,
    ADDS: tl.constexpr, RELU: tl.constexpr, CLIPS: tl.constexpr, ROUNDS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """BM output pixels of BN of C channels, each of which has a kernel of its own: no matrix product."""
    TILES: tl.constexpr = (C + BN - 1) // BN
    pixel = (tl.program_id(0) // TILES) * BM + tl.arange(0, BM)
    channel = (tl.program_id(0) % TILES) * BN + tl.arange(0, BN)
    there, wanted = pixel < pixels, channel < C
    column, row = pixel % OW, (pixel // OW) % OH
    image = (pixel // (OW * OH)).to(tl.int64)
    top, left = row * SH - PH, column * SW - PW
    begin = data + image * (H * W * C)
    sums = tl.zeros((BM, BN), dtype=tl.int32)
    for tap in range(0, KH * KW):
        y, x = top + (tap // KW) * DH, left + (tap % KW) * DW
        valid = there & (y >= 0) & (y < H) & (x >= 0) & (x < W)
        a = tl.load(
            (begin + (y * W + x) * C)[:, None] + channel[None, :], mask=valid[:, None] & wanted[None, :], other=0
        )
        b = tl.load(weight + channel * (KH * KW) + tap, mask=wanted, other=0)
        sums += a.to(tl.int32) * b.to(tl.int32)[None, :]
    places = pixel.to(tl.int64)[:, None] * C + channel[None, :]
    stored = there[:, None] & wanted[None, :]
    _finish(sums, scale, bias, addend, out, places, channel, wanted, stored, addend_scale, ceiling, inverse_scale,
            least, ADDS, RELU, CLIPS, ROUNDS)  # fmt: skip
