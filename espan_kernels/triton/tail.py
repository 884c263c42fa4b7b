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
from espan_kernels.triton.upsample import shuffled


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
    kernel: tl.constexpr,
    p: tl.constexpr,
    depth: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """The folded concat: the sum of 1x1s of the feature maps, of which the last may be a 3x3."""
    x, y0, before = _strip(across, height, rows, block)
    k = tl.arange(0, depth)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = channel < p
    column = _column(channel, p)
    if kernel == 3:
        taps = _taps(weight_ptr, k, column, kept, p, p, p)
    else:
        of_last = _side(weight_ptr, k, column, kept, p)
    side_ptr = weight_ptr + kernel * kernel * p * p
    of_head = _side(side_ptr, k, column, kept, p)
    of_first = _side(side_ptr + p * p, k, column, kept, p)
    if activation_ptr is not None:
        of_activation = _side(side_ptr + 2 * p * p, k, column, kept, p)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    radius: tl.constexpr = kernel // 2
    for i in tl.range(rows + 2 * radius, num_stages=stages):
        y = y0 - 2 * radius + i
        pixel = ((before + y) * width + x) * p
        valid = x < tl.where((y >= y0) & (y < height), width, 0)
        at = pixel[:, None] + k[None, :]
        inside = valid[:, None] & (k < p)[None, :]
        if kernel == 3:
            total, upper, middle = _conv3x3(
                last_ptr, y + 1, x, before, height, width, k, taps, upper, middle, p
            )
        else:
            total = tl.dot(tl.load(last_ptr + at, mask=inside, other=0.0), of_last)
        total = tl.dot(tl.load(head_ptr + at, mask=inside, other=0.0), of_head, total)
        total = tl.dot(tl.load(first_ptr + at, mask=inside, other=0.0), of_first, total)
        if activation_ptr is not None:
            activation = tl.load(activation_ptr + at, mask=inside, other=0.0)
            total = tl.dot(activation, of_activation, total)
        result = (total + bias).to(y_ptr.dtype.element_ty)
        at = pixel[:, None] + channel[None, :]
        tl.store(y_ptr + at, result, mask=valid[:, None] & kept[None, :])


def stages_of(depth: int) -> int:
    """The rows that the concat holds in shared memory: three, or as many as fit in 99 KB."""
    return 3 if depth <= 32 else 1


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
    last_kernel: int = 3,
) -> Tensor:
    """See :func:`espan_kernels.tail`.  float32 uses the reference: tensor cores would round it."""
    t = TailInputs(head, first, last, activation, packed, channels, scale, dtype, flag, last_kernel)
    t.check()
    if last.dtype == torch.float32:
        return tail_by_reference(*t)
    height, width, p = t.last.shape[1:]
    count = len(t.sides)
    weights, biases = sizes(t.channels, t.scale, count, t.last_kernel).split(t.packed)
    depth = triton.next_power_of_2(p)
    columns = min(depth, COLUMNS)
    fused, image = torch.empty_like(t.last), t.empty_image()
    grid, across, rows = strips(t.last, triton.cdiv(p, columns), t.last_kernel - 1, 2)
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
            kernel=t.last_kernel,
            p=p,
            depth=depth,
            columns=columns,
            rows=rows,
            block=BLOCK,
            stages=stages_of(depth),
        )
    upsampling = weights[(t.last_kernel * t.last_kernel + count) * p * p :]
    shuffled(None, fused, upsampling, biases[p:], t.scale, image, t.flag)
    return image
