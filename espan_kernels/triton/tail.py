"""From the features to the image in Triton, in two launches: torch.ops.espan_triton.tail.

Two, because the second convolution needs its neighbours' values of the first, and a Triton program
cannot read what it holds at another pixel but through memory.  Computing them again for each tap
would cost nine times the first convolution; the map between the launches, of 2 P bytes a pixel, is
11 MB at 510x339 and stays in the L2 of a large GPU.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels import _packing
from espan_kernels.tail import _check_inputs, _counts, _form
from espan_kernels.triton.conv import (
    BLOCK,
    _column,
    _conv3x3,
    _of_column,
    count_pixels,
    depth_of,
    warps_of,
)
from espan_kernels.triton.gate import _launchable

OP = "espan_triton::tail"

# Of 48 outputs each.  Triton 3.8 and later load all nine taps first: four warps would need 255
# registers and spill up to 104 bytes on sm_80.  Fewer pixels are too few for Hopper's products.
UPSAMPLE_BLOCK = BLOCK // 2
UPSAMPLE_WARPS = 8


@triton.jit
def _conv1x1(
    total, x_ptr, weight_ptr, m, pixels, column, kept, p: tl.constexpr, depth: tl.constexpr
):
    """``total`` and the products of weights that lie as conv1x1() of _packing.py lays them."""
    # depth / 16 steps of 16 rows share the channels (block, q, step, h, e); row is (h, q, e).
    share: tl.constexpr = depth // 16
    for first in tl.static_range(0, p, depth):
        k = tl.arange(0, depth)
        of_row = k % (4 * share) // 4 * (16 * p) + k // (4 * share) * 8 + k % 4
        place = of_row[:, None] + _of_column(column)[None, :]
        at = m[:, None].to(tl.int64) * p + (first + k)[None, :]
        a = tl.load(x_ptr + at, mask=(m < pixels)[:, None], other=0.0)
        b = tl.load(weight_ptr + first * p + place, mask=kept[None, :], other=0.0)
        total = tl.dot(a, b, total)
    return total


@triton.jit
def concat_kernel(
    last_ptr,
    head_ptr,
    first_ptr,
    activation_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    pixels,
    height,
    width,
    p: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    block: tl.constexpr,
):
    """The folded concat at ``block`` pixels: a 3x3 of the last map and 1x1s of the others."""
    m = tl.program_id(0) * block + tl.arange(0, block)
    channel = tl.arange(0, columns)
    column = _column(channel, p)
    kept = channel < p
    total = tl.zeros((block, columns), tl.float32)
    total = _conv3x3(
        total, last_ptr, weight_ptr, m, pixels, height, width, column, kept, p, p, depth
    )
    side_ptr = weight_ptr + 9 * p * p
    total = _conv1x1(total, head_ptr, side_ptr, m, pixels, column, kept, p, depth)
    total = _conv1x1(total, first_ptr, side_ptr + p * p, m, pixels, column, kept, p, depth)
    if activation_ptr is not None:
        side_ptr += 2 * p * p
        total = _conv1x1(total, activation_ptr, side_ptr, m, pixels, column, kept, p, depth)
    o = total + tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    at = m[:, None].to(tl.int64) * p + channel[None, :]
    valid = (m < pixels)[:, None] & kept[None, :]
    tl.store(y_ptr + at, o.to(y_ptr.dtype.element_ty), mask=valid)


@triton.jit
def upsample_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    image_ptr,
    flag_ptr,
    pixels,
    height,
    width,
    p: tl.constexpr,
    scale: tl.constexpr,
    columns: tl.constexpr,
    depth: tl.constexpr,
    block: tl.constexpr,
):
    """What ``block`` pixels become: a 3x3 to 3 scale^2 channels, shuffled into the image.

    ``columns`` is a power of 2, at least 3 scale^2.  uint8 images are interleaved, others planar.
    """
    m = tl.program_id(0) * block + tl.arange(0, block)
    output = tl.arange(0, columns)  # (dy, dx, rgb)
    kept = output < 3 * scale * scale
    # As _up_rows() of tail.py deals them: the lane's values two in each tile of 8 columns.
    run: tl.constexpr = scale if scale > 2 else 1
    packed: tl.constexpr = 48 if scale > 2 else 16
    lane = output // (3 * run)
    value = output % (3 * run)
    column = value // 2 * 8 + lane * 2 + value % 2
    total = tl.zeros((block, columns), tl.float32)
    total = _conv3x3(
        total, x_ptr, weight_ptr, m, pixels, height, width, column, kept, p, packed, depth
    )
    o = total + tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]

    valid = (m < pixels)[:, None] & kept[None, :]
    if flag_ptr is not None:
        plausible = (o >= -1.0) & (o <= 2.0)  # false for what is not a number
        # Along one axis: Triton 3.7 does not compile the reduction of both for sm_100.
        outside = tl.max((valid & ~plausible).to(tl.int32), 1)
        tl.store(flag_ptr + 0 * m, 1, mask=outside > 0)

    n = (m // width // height).to(tl.int64)
    row = m // width % height
    of_output = (output // (3 * scale)).to(tl.int64) * (width * scale) + output // 3 % scale
    of_pixel = m % width * scale
    if image_ptr.dtype.element_ty == tl.uint8:
        of_pixel = 3 * ((n * height + row) * scale * (width * scale) + of_pixel)
        of_output = 3 * of_output + output % 3
        o = tl.where(o == o, o, 0.0)
        o = tl.floor(tl.minimum(tl.maximum(o, 0.0), 1.0) * 255.0 + 0.5)
    else:
        of_pixel += (n * 3 * height + row) * scale * (width * scale)
        of_output += (output % 3).to(tl.int64) * (height * scale) * (width * scale)
    at = of_pixel[:, None] + of_output[None, :]
    tl.store(image_ptr + at, o.to(image_ptr.dtype.element_ty), mask=valid)


def columns_of(scale: int) -> int:
    """Columns of the product for 3 scale^2 channels: a power of 2, and as many as an mma takes."""
    return max(16, triton.next_power_of_2(3 * scale * scale))


@triton_op(OP, mutates_args={"flag"})
def tail(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None,
) -> Tensor:
    """As torch.ops.espan.tail, for features in float16 and bfloat16."""
    _check_inputs(head, first, last, activation, packed, channels, scale, dtype, flag)
    if last.dtype == torch.float32:
        raise RuntimeError(f"{OP}: last has dtype float32; it must be float16 or bfloat16")
    batch, height, width, p = last.shape
    sides = 2 if activation is None else 3
    _packing.check_form(OP, _form(packed, last.dtype, channels, scale, sides), "cuda")
    weights, biases = _packing.split(packed, _counts(channels, scale, sides)[0])
    pixels = count_pixels(batch, height, width)
    columns = triton.next_power_of_2(p)
    fused = torch.empty_like(last)
    size = (scale * height, scale * width)
    if dtype == torch.uint8:
        image = last.new_empty(batch, *size, 3, dtype=dtype).permute(0, 3, 1, 2)
    else:
        image = last.new_empty(batch, 3, *size, dtype=dtype)
    with torch.cuda.device_of(last):
        _launchable(concat_kernel)[(triton.cdiv(pixels, BLOCK),)](
            last,
            head,
            first,
            activation,
            weights,
            biases,
            fused,
            pixels,
            height,
            width,
            p=p,
            columns=columns,
            depth=depth_of(p),
            block=BLOCK,
            num_warps=warps_of(columns),
        )
        _launchable(upsample_kernel)[(triton.cdiv(pixels, UPSAMPLE_BLOCK),)](
            fused,
            weights[(9 + sides) * p * p :],
            biases[p:],
            image,
            flag,
            pixels,
            height,
            width,
            p=p,
            scale=scale,
            columns=columns_of(scale),
            depth=depth_of(p),
            block=UPSAMPLE_BLOCK,
            num_warps=UPSAMPLE_WARPS,
        )
    return image
