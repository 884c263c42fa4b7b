"""The first convolution in Triton, one launch: torch.ops.espan_triton.head."""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels import _packing
from espan_kernels.head import _check_inputs, _form, _weight_count
from espan_kernels.triton.conv import (
    BLOCK,
    _column,
    _of_column,
    _of_row,
    count_pixels,
    warps_of,
)
from espan_kernels.triton.gate import _launchable

OP = "espan_triton::head"


@triton.jit
def head_kernel(
    image_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    y_ptr,
    pixels,
    height,
    width,
    stride_n,
    stride_c,
    stride_y,
    stride_x,
    kernel: tl.constexpr,
    p: tl.constexpr,
    columns: tl.constexpr,
    block: tl.constexpr,
):
    """``block`` pixels of the features; ``columns`` is P or the power of 2 above it.

    A row of taps is 3 ``kernel`` values RGBRGB..., multiplied 16 at a time.
    """
    m = tl.program_id(0) * block + tl.arange(0, block)
    column_x = m % width
    row_y = m // width % height
    n = m // width // height
    of_column = n.to(tl.int64) * stride_n + column_x.to(tl.int64) * stride_x
    channel = tl.arange(0, columns)
    column = _column(channel, p)
    kept = channel < p
    k = tl.arange(0, 16)
    place = _of_row(k, p)[:, None] + _of_column(column)[None, :]

    radius: tl.constexpr = kernel // 2
    steps: tl.constexpr = (3 * kernel + 15) // 16
    total = tl.zeros((block, columns), tl.float32)
    for dy in range(kernel):
        y = row_y + (dy - radius)
        row_inside = (m < pixels) & (y >= 0) & (y < height)
        of_pixel = of_column + y.to(tl.int64) * stride_y
        for step in tl.static_range(steps):
            tap = step * 16 + k
            dx = tap // 3 - radius
            x = column_x[:, None] + dx[None, :]
            inside = row_inside[:, None] & (x >= 0) & (x < width) & (tap < 3 * kernel)[None, :]
            of_tap = dx.to(tl.int64) * stride_x + (tap % 3).to(tl.int64) * stride_c
            at = of_pixel[:, None] + of_tap[None, :]
            value = tl.load(image_ptr + at, mask=inside, other=0).to(tl.float32)
            if image_ptr.dtype.element_ty == tl.uint8:
                value = value * (1.0 / 255.0)
            if mean_ptr is not None:
                value = value - tl.load(mean_ptr + tap % 3)[None, :]
            # Zero outside, not minus the mean: the padding stands for the mean colour.
            a = tl.where(inside, value, 0.0).to(weight_ptr.dtype.element_ty)
            first = ((dy // 3 * steps + step) * 3 + dy % 3) * (16 * p)
            b = tl.load(weight_ptr + first + place, mask=kept[None, :], other=0.0)
            total = tl.dot(a, b, total)
    o = total + tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    at = m[:, None].to(tl.int64) * p + channel[None, :]
    valid = (m < pixels)[:, None] & kept[None, :]
    tl.store(y_ptr + at, o.to(y_ptr.dtype.element_ty), mask=valid)


@triton_op(OP, mutates_args={})
def head(image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int) -> Tensor:
    """As torch.ops.espan.head, to float16 and bfloat16."""
    _check_inputs(image, packed, mean, channels, kernel)
    if packed.dtype == torch.float32:
        raise RuntimeError(f"{OP}: packed has dtype float32; it must be float16 or bfloat16")
    _packing.check_form(OP, _form(packed, packed.dtype, channels, kernel), "cuda")
    batch, _, height, width = image.shape
    p = _packing.padded(channels)
    weight, bias = _packing.split(packed, _weight_count(channels, kernel))
    y = packed.new_empty(batch, height, width, p)
    pixels = count_pixels(batch, height, width)
    columns = triton.next_power_of_2(p)
    with torch.cuda.device_of(image):
        _launchable(head_kernel)[(triton.cdiv(pixels, BLOCK),)](
            image,
            weight,
            bias,
            mean,
            y,
            pixels,
            height,
            width,
            *image.stride(),
            kernel=kernel,
            p=p,
            columns=columns,
            block=BLOCK,
            num_warps=warps_of(columns),
        )
    return y
