"""The first convolution of an unshuffled image in Triton, in one launch.

With u = ``unshuffle``, a pixel of the features is a square of u x u pixels of the image, whose
3 u^2 values are its input channels.  The image is not rearranged in memory: each program gathers
these values as operands of 16 columns for the products.
"""
# Triton does not allow the annotations of typing inside a kernel, nor unpacking in a tuple:
# mypy: disable-error-code="no-untyped-def, assignment, misc"
# ruff: noqa: RUF005

import triton
import triton.language as tl

from espan_kernels.triton.conv import SIZES, _column, _of_column, _of_row, _strip
from espan_kernels.triton.point import activated

WARPS = 8


@triton.jit
def _continued(i, n):
    """The index in a row of ``n`` pixels that is continued at its end by reflection."""
    return tl.where(i < n, i, 2 * n - 2 - i)


@triton.jit
def _unshuffled_taps(
    weight_ptr,
    column,
    kept,
    p: tl.constexpr,
    area: tl.constexpr,
    size: tl.constexpr,
    parts: tl.constexpr,
):
    """Load the taps in the order (dx, part, dy).

    In a column of taps, pack_head has the values of a square in the order (dy, dx, rgb), padded to
    a multiple of 16.
    """
    k = tl.arange(0, 16)
    mask = (k < size)[:, None] & kept[None, :]
    taps = ()
    for dx in tl.static_range(3):
        for part in tl.static_range(parts):
            row = dx * (16 * parts) + k % area * 3 + k // area + part
            at = weight_ptr + _of_row(row, p)[:, None] + _of_column(column)[None, :]
            for dy in tl.static_range(3):
                taps = taps + (tl.load(at + dy * (16 * p), mask=mask, other=0.0),)
    return taps


@triton.jit(do_not_specialize=[*SIZES, "stride_n", "stride_c", "stride_y", "stride_x"])
def unshuffled_head_kernel(
    image_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    y_ptr,
    height,
    width,
    across,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    unshuffle: tl.constexpr,
    p: tl.constexpr,
    columns: tl.constexpr,
    activation: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    """Compute ``columns`` channels of ``block`` x ``rows`` pixels of the features.

    ``height`` and ``width`` are those of the image.
    """
    squares_y = (height + unshuffle - 1) // unshuffle
    squares_x = (width + unshuffle - 1) // unshuffle
    x, y0, before = _strip(across, squares_y, rows, block)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = channel < p
    column = _column(channel, p)
    # An operand has the values of all colours in a column of taps, or those of one.  The addresses
    # for the three colours then differ by a scalar only.
    area: tl.constexpr = unshuffle * unshuffle
    size: tl.constexpr = 3 * area if 3 * area <= 16 else area
    parts: tl.constexpr = 3 * area // size
    k = tl.arange(0, 16)
    colour = k // area
    taps = _unshuffled_taps(weight_ptr, column, kept, p, area, size, parts)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]

    image_ptr += before // squares_y * stride_n
    of_colour = image_ptr + colour.to(tl.int64) * stride_c
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    for j in tl.range(rows + 2, num_stages=1):
        y = y0 - 1 + j
        y_in = _continued(y * unshuffle + k // unshuffle % unshuffle, height)
        start = of_colour + y_in.to(tl.int64) * stride_y
        row = tl.where((y >= 0) & (y < squares_y), squares_x, 0)
        lower = tl.zeros((block, columns), tl.float32)
        for dx in tl.static_range(3):
            inside = ((x >= 1 - dx) & (x < row + 1 - dx))[:, None] & (k < size)[None, :]
            x_in = (x + (dx - 1))[:, None] * unshuffle + (k % unshuffle)[None, :]
            pixel = start[None, :] + _continued(x_in, width).to(tl.int64) * stride_x
            for part in tl.static_range(parts):
                value = tl.load(pixel + part * stride_c, mask=inside, other=0)
                a = value.to(tl.float32)
                if value.dtype == tl.uint8:
                    a = a * (1.0 / 255.0)
                if mean_ptr is not None:
                    mean = tl.load(mean_ptr + part + colour, mask=k < size, other=0.0)
                    # Zero outside the image, not -mean: the mean is subtracted before the padding.
                    a = tl.where(inside, a - mean[None, :], 0.0)
                a = a.to(weight_ptr.dtype.element_ty)
                upper = tl.dot(a, taps[3 * (dx * parts + part) + 2], upper)
                middle = tl.dot(a, taps[3 * (dx * parts + part) + 1], middle)
                lower = tl.dot(a, taps[3 * (dx * parts + part)], lower)
        y -= 1
        at = (((before + y) * squares_x + x) * p)[:, None] + channel[None, :]
        row = tl.where((y >= y0) & (y < squares_y), squares_x, 0)
        valid = (x < row)[:, None] & kept[None, :]
        result = activated(upper + bias, activation)
        tl.store(y_ptr + at, result.to(y_ptr.dtype.element_ty), mask=valid)
        upper = middle
        middle = lower
