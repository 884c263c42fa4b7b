"""The last layers in Triton, in two launches: torch.ops.espan_triton.tail.

The second convolution needs the results of the first at neighbouring pixels.  In Triton, a program
can access the values of another pixel only through memory, so each convolution is a launch.
Recomputing the values for each tap would cost nine times the first convolution.  The feature map
between the launches has 2 P bytes per pixel: 11 MB at 510x339, which stays in the L2 of a large
GPU.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels.tail import TailInputs, sizes, tail_by_reference
from espan_kernels.triton.conv import (
    BLOCK,
    COLUMNS,
    SIZES,
    _column,
    _conv3x3,
    _of_column,
    _strip,
    _taps,
    strips,
)
from espan_kernels.triton.gate import _launchable


@triton.jit
def _side(weight_ptr, k, column, kept, p: tl.constexpr):
    """Load rows ``k`` of a 1x1 weight in the layout of cuda_fragments.conv1x1."""
    # A group of 16 or 32 channels is one or two steps of 16 rows.  Channel (q, step, h, e) of the
    # group is row (h, q, e) of that step.
    steps: tl.constexpr = 2 if p % 32 == 0 else 1
    step = k // (16 * steps) * steps + k % (4 * steps) // 4
    row = step * (16 * p) + k % (16 * steps) // (4 * steps) * 8 + k % 4
    inside = (k < p)[:, None] & kept[None, :]
    return tl.load(weight_ptr + row[:, None] + _of_column(column)[None, :], mask=inside, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def concat_kernel(
    last_ptr,
    head_ptr,
    first_ptr,
    activation_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    height,
    width,
    across,
    p: tl.constexpr,
    depth: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """The folded concat: the sum of a 3x3 of the last feature map and 1x1s of the others."""
    x, y0, before = _strip(across, height, rows, block)
    k = tl.arange(0, depth)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = channel < p
    column = _column(channel, p)
    taps = _taps(weight_ptr, k, column, kept, p, p)
    side_ptr = weight_ptr + 9 * p * p
    of_head = _side(side_ptr, k, column, kept, p)
    of_first = _side(side_ptr + p * p, k, column, kept, p)
    if activation_ptr is not None:
        of_activation = _side(side_ptr + 2 * p * p, k, column, kept, p)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    for i in tl.range(rows + 2, num_stages=stages):
        y = y0 - 1 + i
        total, upper, middle = _conv3x3(
            last_ptr, y, x, before, height, width, k, taps, upper, middle, p
        )
        pixel = ((before + y - 1) * width + x) * p
        valid = x < tl.where((y > y0) & (y <= height), width, 0)
        at = pixel[:, None] + k[None, :]
        inside = valid[:, None] & (k < p)[None, :]
        total = tl.dot(tl.load(head_ptr + at, mask=inside, other=0.0), of_head, total)
        total = tl.dot(tl.load(first_ptr + at, mask=inside, other=0.0), of_first, total)
        if activation_ptr is not None:
            activation = tl.load(activation_ptr + at, mask=inside, other=0.0)
            total = tl.dot(activation, of_activation, total)
        result = (total + bias).to(y_ptr.dtype.element_ty)
        at = pixel[:, None] + channel[None, :]
        tl.store(y_ptr + at, result, mask=valid[:, None] & kept[None, :])


@triton.jit(do_not_specialize=SIZES)
def upsample_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    image_ptr,
    flag_ptr,
    height,
    width,
    across,
    p: tl.constexpr,
    depth: tl.constexpr,
    scale: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """A 3x3 convolution to 3 scale^2 channels, followed by the pixel shuffle.

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
    # The order of _up_rows() in tail.py: a lane has two values in each tile of 8 columns.
    run: tl.constexpr = scale if scale > 2 else 1
    packed: tl.constexpr = 48 if scale > 2 else 16
    lane = (dy * scale + dx) // run
    value = (dy * scale + dx) % run * 3 + rgb
    column = value // 2 * 8 + lane * 2 + value % 2
    taps = _taps(weight_ptr, k, column, kept, p, packed)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]

    row_size = (width * scale).to(tl.int64)
    if interleaved:
        of_output = dy * (3 * row_size) + output % (3 * scale)
    else:
        of_output = rgb * (height * scale * row_size) + dy * row_size + dx
    outside = tl.zeros((block,), tl.int32)
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    for i in tl.range(rows + 2, num_stages=stages):
        y = y0 - 1 + i
        total, upper, middle = _conv3x3(
            x_ptr, y, x, before, height, width, k, taps, upper, middle, p
        )
        o = total + bias
        row = tl.where((y > y0) & (y <= height), width, 0)
        valid = (x < row)[:, None] & kept[None, :]
        if flag_ptr is not None:
            plausible = (o >= -1.0) & (o <= 2.0)  # false for NaN
            # Reduce one axis only: Triton 3.7 fails to compile a reduction of both for sm_100.
            outside = tl.maximum(outside, tl.max((valid & ~plausible).to(tl.int32), 1))
        if interleaved:
            of_pixel = 3 * ((before + y - 1) * scale * row_size + x * scale)
            o = tl.where(o == o, o, 0.0)
            o = tl.floor(tl.minimum(tl.maximum(o, 0.0), 1.0) * 255.0 + 0.5)
        else:
            of_pixel = (3 * before + y - 1) * scale * row_size + x * scale
        at = of_pixel[:, None] + of_output[None, :]
        tl.store(image_ptr + at, o.to(image_ptr.dtype.element_ty), mask=valid)
    if flag_ptr is not None:
        tl.store(flag_ptr + 0 * x, 1, mask=outside > 0)


def stages_of(depth: int) -> int:
    """The rows that the concat holds in shared memory: three, or as many as fit in 99 KB."""
    return 3 if depth <= 32 else 1


def up_columns_of(depth: int, scale: int) -> int:
    """The number of outputs per program: fewer for wide networks, else sm_80 spills registers."""
    outputs = max(16, triton.next_power_of_2(3 * scale * scale))
    return min(outputs, COLUMNS if depth <= 32 else 16)


@triton_op("espan_triton::tail", mutates_args={"flag"})
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
    """See :func:`espan_kernels.tail`.  float32 uses the reference: tensor cores would round it."""
    t = TailInputs(head, first, last, activation, packed, channels, scale, dtype, flag)
    t.check()
    if last.dtype == torch.float32:
        return tail_by_reference(*t)
    height, width, p = t.last.shape[1:]
    count = len(t.sides)
    weights, biases = sizes(t.channels, t.scale, count).split(t.packed)
    depth = triton.next_power_of_2(p)
    columns = min(depth, COLUMNS)
    fused, image = torch.empty_like(t.last), t.empty_image()
    up_columns = up_columns_of(depth, t.scale)
    up_groups = triton.cdiv(3 * t.scale * t.scale, up_columns)
    grid, across, rows = strips(t.last, triton.cdiv(p, columns), 2, 2)
    up_grid, up_across, up_rows = strips(t.last, up_groups, 2, 3)
    with torch.cuda.device_of(t.last):
        _launchable(concat_kernel)[grid](
            t.last,
            t.head,
            t.first,
            t.activation,
            weights,
            biases,
            fused,
            height,
            width,
            across,
            p=p,
            depth=depth,
            columns=columns,
            rows=rows,
            block=BLOCK,
            stages=stages_of(depth),
        )
        _launchable(upsample_kernel)[up_grid](
            fused,
            weights[(9 + count) * p * p :],
            biases[p:],
            image,
            t.flag,
            height,
            width,
            up_across,
            p=p,
            depth=depth,
            scale=t.scale,
            columns=up_columns,
            rows=up_rows,
            block=BLOCK,
            stages=min(stages_of(depth) + 1, 3),
        )
    return image
