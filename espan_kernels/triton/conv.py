"""A 3x3 convolution with what follows it in a SPAN block, each one launch, in Triton.

Feature maps are (N, H, W, P) in float16 or bfloat16; products are summed in float32 on the tensor
cores.  Weights are read as pack_spab lays them out: 16 input channels by P output channels, halved,
so the sum is o/2.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from espan_kernels.triton.gate import _launchable, _sigmoid_minus_half

# A warp has 32 pixels, two tensor-core tiles high, and up to 32 output channels.
BLOCK = 128


@triton.jit
def _column(channel, p: tl.constexpr):
    """The column of the packed weights that has this output channel; see output_order."""
    group: tl.constexpr = 4 if p % 32 == 0 else 2
    r = channel % (8 * group)
    tile = r % (2 * group) // 2
    return channel // (8 * group) * (8 * group) + tile * 8 + r // (2 * group) * 2 + r % 2


@triton.jit
def _of_column(column):
    """Where fragments() of _packing.py places a column of 16 rows."""
    return column // 16 * 256 + column % 8 * 32 + column // 8 % 2 * 4


@triton.jit
def _of_row(k, columns: tl.constexpr):
    """Where it places row k % 16 of step k // 16, of three taps and that many columns each."""
    return k // 16 * (3 * 16 * columns) + k % 8 // 2 * 8 + k % 16 // 8 * 2 + k % 2


@triton.jit
def _conv3x3(
    total,
    x_ptr,
    weight_ptr,
    m,
    pixels,
    height,
    width,
    column,
    kept,
    p: tl.constexpr,
    packed: tl.constexpr,
    depth: tl.constexpr,
):
    """``total`` and the nine taps' products at the pixels ``m``.

    ``column`` are those wanted of the weights' ``packed`` columns, as far as ``kept``; ``depth`` of
    the P input channels are multiplied at once.
    """
    column_x = m % width
    row_y = m // width % height
    k = tl.arange(0, depth)
    place = _of_row(k, packed)[:, None] + _of_column(column)[None, :]
    for tap in tl.static_range(9):
        dy = tap // 3
        dx = tap % 3
        y = row_y + (dy - 1)
        x = column_x + (dx - 1)
        inside = (m < pixels) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = (m + ((dy - 1) * width + (dx - 1))).to(tl.int64) * p
        for first in tl.static_range(0, p, depth):
            a = tl.load(x_ptr + at[:, None] + (first + k)[None, :], mask=inside[:, None], other=0.0)
            step = ((dx * (p // 16) + first // 16) * 3 + dy) * (16 * packed)
            b = tl.load(weight_ptr + step + place, mask=kept[None, :], other=0.0)
            total = tl.dot(a, b, total)
    return total


@triton.jit
def conv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    pixels,
    height,
    width,
    p: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    gated: tl.constexpr,
    block: tl.constexpr,
):
    """``silu(conv(x))``, or ``gate(conv(x), residual)`` if ``gated``, of ``block`` pixels.

    ``columns`` is P or the power of 2 above it; ``depth`` input channels are multiplied at once.
    """
    m = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, columns)
    column = _column(channel, p)
    kept = channel < p
    total = tl.zeros((block, columns), tl.float32)
    total = _conv3x3(total, x_ptr, weight_ptr, m, pixels, height, width, column, kept, p, p, depth)
    o = 2.0 * (total + tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :])

    at = m[:, None].to(tl.int64) * p + channel[None, :]
    valid = (m < pixels)[:, None] & kept[None, :]
    if gated:
        residual = tl.load(residual_ptr + at, mask=valid, other=0.0).to(tl.float32)
        result = (o + residual) * _sigmoid_minus_half(o)
    else:
        result = o * (0.5 + _sigmoid_minus_half(o))
    tl.store(y_ptr + at, result.to(y_ptr.dtype.element_ty), mask=valid)


def count_pixels(batch: int, height: int, width: int) -> int:
    """Pixels of a batch, if one launch can count them."""
    if (pixels := batch * height * width) > 2**31 - BLOCK:
        raise RuntimeError(f"{pixels} pixels; one launch takes at most {2**31 - BLOCK}")
    return pixels


def depth_of(p: int) -> int:
    """Input channels to multiply at once."""
    return 32 if p % 32 == 0 else 16


def warps_of(columns: int) -> int:
    """Warps of a program: each sums 32 pixels by 32 columns, and with 64 columns would spill."""
    return 8 if columns > 32 else 4


def conv(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """``silu(conv(x))``, or ``gate(conv(x), residual)`` where there is a residual.

    Args:
        x: (N, H, W, P) contiguous, float16 or bfloat16.
        weight: (9 P P,) of the dtype of ``x``, one layer's part of what pack_spab returns.
        bias: (P,) in float32, likewise.
        residual: like ``x``.

    Returns:
        A tensor like ``x``.
    """
    y = torch.empty_like(x)
    height, width, p = x.shape[1:]
    pixels = count_pixels(x.shape[0], height, width)
    columns = triton.next_power_of_2(p)
    with torch.cuda.device_of(x):
        _launchable(conv_kernel)[(triton.cdiv(pixels, BLOCK),)](
            x,
            weight,
            bias,
            residual,
            y,
            pixels,
            height,
            width,
            p=p,
            columns=columns,
            depth=depth_of(p),
            gated=residual is not None,
            block=BLOCK,
            num_warps=warps_of(columns),
        )
    return y
