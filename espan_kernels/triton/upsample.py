"""The last convolution and pixel shuffle in Triton: torch.ops.espan_triton.upsample."""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels.tail import empty_image
from espan_kernels.triton.conv import (
    BLOCK,
    COLUMNS,
    SIZES,
    _products,
    _split_rows,
    _strip,
    _taps,
    strips,
)
from espan_kernels.triton.gate import _launchable
from espan_kernels.upsample import UpsampleInputs, sizes, upsample_by_reference


@triton.jit(do_not_specialize=SIZES)
def upsample_kernel(
    near_ptr,
    last_ptr,
    weight_ptr,
    bias_ptr,
    image_ptr,
    flag_ptr,
    height,
    width,
    across,
    near_p: tl.constexpr,
    near_depth: tl.constexpr,
    p: tl.constexpr,
    depth: tl.constexpr,
    scale: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """A 3x3 convolution of one or two feature maps to 3 scale^2 channels, then the pixel shuffle.

    ``depth`` is P rounded up to a power of 2; ``columns`` is the number of outputs per program.
    uint8 images are interleaved, others planar.  The outputs are in the order of the image, so that
    stores are contiguous.
    """
    x, y0, before = _strip(across, height, rows, block)
    k = tl.arange(0, depth)
    output = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = output < 3 * scale * scale
    interleaved: tl.constexpr = image_ptr.dtype.element_ty == tl.uint8
    if interleaved:
        dy = output // (3 * scale)
        dx = output // 3 % scale
        rgb = output % 3
    else:
        rgb = output // (scale * scale)
        dy = output // scale % scale
        dx = output % scale
    # The order of up_rows() in tail.py: a lane has two values in each tile of 8 columns.
    run: tl.constexpr = scale if scale > 2 else 1
    packed: tl.constexpr = 48 if scale > 2 else 16
    lane = (dy * scale + dx) // run
    value = (dy * scale + dx) % run * 3 + rgb
    column = value // 2 * 8 + lane * 2 + value % 2
    inputs: tl.constexpr = near_p + p
    taps = _taps(weight_ptr + near_p * 3 * packed, k, column, kept, p, packed, inputs)
    if near_ptr is not None:
        near_k = tl.arange(0, near_depth)
        near_taps = _taps(weight_ptr, near_k, column, kept, near_p, packed, inputs)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]

    # Not .to(): under torch.compile, a width of 1 is a Python integer.
    row_size = tl.full((), width, tl.int64) * scale
    if interleaved:
        of_output = dy * (3 * row_size) + output % (3 * scale)
    else:
        of_output = rgb * (height * scale * row_size) + dy * row_size + dx
    outside = tl.zeros((block,), tl.int32)
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    for i in tl.range(rows + 2, num_stages=stages):
        y = y0 - 1 + i
        products = tl.zeros((block, 4 * columns), tl.float32)
        products = _products(last_ptr, y, x, before, height, width, k, taps, products, p)
        if near_ptr is not None:
            products = _products(
                near_ptr, y, x, before, height, width, near_k, near_taps, products, near_p
            )
        first, second, third = _split_rows(products)
        o = upper + third + bias
        upper = middle + second
        middle = first
        row = tl.where((y > y0) & (y <= height), width, 0)
        valid = (x < row)[:, None] & kept[None, :]
        if flag_ptr is not None:
            plausible = (o >= -1.0) & (o <= 2.0)  # false for NaN
            # Reduce one axis only: Triton 3.7 fails to compile a reduction of both for sm_100.
            outside = tl.maximum(outside, tl.max((valid & ~plausible).to(tl.int32), 1))
        if interleaved:
            of_pixel = 3 * ((before + y - 1) * scale * row_size + x * scale)
            o = tl.where(o == o, o, 0.0)
            o = tl.minimum(tl.maximum(o, 0.0), 1.0) * 255.0
            o = (o + 12582912.0) - 12582912.0  # 1.5 * 2**23 rounds to integers, half to even
        else:
            of_pixel = (3 * before + y - 1) * scale * row_size + x * scale
        at = of_pixel[:, None] + of_output[None, :]
        tl.store(image_ptr + at, o.to(image_ptr.dtype.element_ty), mask=valid)
    if flag_ptr is not None:
        tl.store(flag_ptr + 0 * x, 1, mask=outside > 0)


def stages_of(depth: int, near_depth: int) -> int:
    """The rows that a program holds in shared memory: as many as fit in 99 KB."""
    if near_depth:
        return 1
    return 3 if depth <= 32 else 2


def columns_of(depth: int, scale: int) -> int:
    """The number of outputs per program: fewer for wide networks, else sm_80 spills registers."""
    outputs = max(16, triton.next_power_of_2(3 * scale * scale))
    return min(outputs, COLUMNS if depth <= 32 else 16)


def shuffled(
    near: Tensor | None,
    last: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: int,
    image: Tensor,
    flag: Tensor | None,
) -> None:
    """Convolve ``near``, if there is one, and ``last``, and write the result to ``image``."""
    height, width, p = last.shape[1:]
    near_p = 0 if near is None else near.shape[3]
    depth, near_depth = triton.next_power_of_2(p), triton.next_power_of_2(near_p)
    columns = columns_of(max(depth, near_depth), scale)
    grid, across, rows = strips(last, triton.cdiv(3 * scale * scale, columns), 2, 3)
    with torch.cuda.device_of(last):
        _launchable(upsample_kernel)[grid](
            near,
            last,
            weight,
            bias,
            image,
            flag,
            height,
            width,
            across,
            near_p=near_p,
            near_depth=near_depth,
            p=p,
            depth=depth,
            scale=scale,
            columns=columns,
            rows=rows,
            block=BLOCK,
            stages=stages_of(depth, near_depth),
        )


@triton_op("espan_triton::upsample", mutates_args={"flag"})
def upsample(
    near: Tensor,
    last: Tensor,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None,
) -> Tensor:
    """See :func:`espan_kernels.upsample`.  float32 uses the reference, as the other ops do."""
    t = UpsampleInputs(near, last, packed, channels, scale, dtype, flag)
    t.check()
    if last.dtype == torch.float32:
        return upsample_by_reference(*t)
    weight, bias = sizes(channels, scale).split(packed)
    image = empty_image(last, scale, dtype)
    shuffled(near, last, weight, bias, scale, image, flag)
    return image
