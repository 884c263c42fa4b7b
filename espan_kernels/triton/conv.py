"""A 3x3 convolution of a SPAN block with its activation or gate, in one Triton launch.

Feature maps are (N, H, W, P) in float16 or bfloat16; products are summed in float32 on the tensor
cores.  Weights have the layout of pack_spab: 16 input channels by P output channels, halved, so the
sum is o/2.

A program processes a strip of ``block`` columns from top to bottom.  It reads each input row three
times, once for each column of taps, and multiplies it by all three rows of taps.  The products are
added to the sums of three output rows.  The weights stay in shared memory.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from espan_kernels.triton.gate import _launchable

# Not specialised: Triton would compile other binaries for sizes of 1 and multiples of 16.
SIZES = ["height", "width", "across"]

BLOCK = 64  # pixel columns per program: the M of a tensor-core product on Hopper
# Maximum number of output channels per program: with 64, registers would spill.
COLUMNS = 32


@triton.jit
def _column(channel, p: tl.constexpr):
    """The column of the packed weights with this output channel; see output_order."""
    group: tl.constexpr = 4 if p % 32 == 0 else 2
    r = channel % (8 * group)
    tile = r % (2 * group) // 2
    return channel // (8 * group) * (8 * group) + tile * 8 + r // (2 * group) * 2 + r % 2


@triton.jit
def _of_column(column):
    """The offset at which fragments() of packing/cuda_fragments.py stores a column of 16 rows."""
    return column // 16 * 256 + column % 8 * 32 + column // 8 % 2 * 4


@triton.jit
def _of_row(k, columns: tl.constexpr):
    """The offset at which it stores row k % 16 of step k // 16 (three taps of ``columns``)."""
    return k // 16 * (3 * 16 * columns) + k % 8 // 2 * 8 + k % 16 // 8 * 2 + k % 2


@triton.jit
def _three_rows(column, kept, packed: tl.constexpr):
    """Offsets and mask of three rows of taps, each with the columns ``column``, as one matrix.

    The number of columns must be a power of 2, so there is a fourth row, which is masked out.
    """
    columns: tl.constexpr = column.shape[0]
    dy = tl.arange(0, 4)[:, None]
    offset = dy * (16 * packed) + _of_column(column)[None, :]
    mask = (dy < 3) & kept[None, :]
    return tl.reshape(offset, (4 * columns,)), tl.reshape(mask, (4 * columns,))


@triton.jit
def _split_rows(products):
    """Split the products by the three rows of taps."""
    block: tl.constexpr = products.shape[0]
    columns: tl.constexpr = products.shape[1] // 4
    products = tl.permute(tl.reshape(products, (block, 2, 2, columns)), (0, 3, 1, 2))
    even, odd = tl.split(products)
    first, third = tl.split(even)
    second, _ = tl.split(odd)
    return first, second, third


@triton.jit
def _taps(weight_ptr, k, column, kept, p: tl.constexpr, packed: tl.constexpr):
    """Load the three columns of taps of a 3x3 convolution, each with three rows of taps.

    ``k`` are the input channels; the taps are zero from P on.  ``column`` selects from the
    ``packed`` columns of the weights; the taps are zero where not ``kept``.
    """
    offset, mask = _three_rows(column, kept, packed)
    at = weight_ptr + _of_row(k, packed)[:, None] + offset[None, :]
    mask = (k < p)[:, None] & mask[None, :]
    step: tl.constexpr = p // 16 * 3 * (16 * packed)
    left = tl.load(at, mask=mask, other=0.0)
    centre = tl.load(at + step, mask=mask, other=0.0)
    right = tl.load(at + 2 * step, mask=mask, other=0.0)
    return left, centre, right


@triton.jit
def _strip(across, height, rows: tl.constexpr, block: tl.constexpr):
    """The columns and the first row of this program, and the number of rows before its image."""
    strip = tl.program_id(0)
    down = (height + rows - 1) // rows
    x = strip % across * block + tl.arange(0, block)
    y = strip // across % down * rows
    return x, y, (strip // across // down).to(tl.int64) * height


@triton.jit
def _conv3x3(x_ptr, y, x, before, height, width, k, taps, upper, middle, p: tl.constexpr):
    """Add the products of input row ``y`` to the sums of three output rows.

    ``upper`` holds the sums of output row y - 1, which lack only the lowest row of taps; ``middle``
    those of row y.  Returns the complete row y - 1, and ``upper`` and ``middle`` for the next row.
    """
    at = x_ptr + (((before + y) * width + x) * p)[:, None] + k[None, :]
    row = tl.where((y >= 0) & (y < height), width, 0)  # pixels in row y: none outside the image
    of_p = (k < p)[None, :]
    a = tl.load(at - p, mask=((x > 0) & (x <= row))[:, None] & of_p, other=0.0)
    products = tl.dot(a, taps[0])
    a = tl.load(at, mask=(x < row)[:, None] & of_p, other=0.0)
    products = tl.dot(a, taps[1], products)
    a = tl.load(at + p, mask=(x < row - 1)[:, None] & of_p, other=0.0)
    products = tl.dot(a, taps[2], products)
    first, second, third = _split_rows(products)
    return upper + third, middle + second, first


@triton.jit
def _sigmoid(h):
    """The sigmoid of ``o = 2 h``, to 1e-7: enough because results are rounded to 16 bits."""
    return 1.0 / (1.0 + tl.exp2(-2.8853900817779268 * h))


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    height,
    width,
    across,
    p: tl.constexpr,
    depth: tl.constexpr,
    columns: tl.constexpr,
    gated: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """Compute ``block`` x ``rows`` pixels of ``silu(conv(x))``, or ``gate(conv(x), residual)``.

    ``depth`` is P rounded up to a power of 2; ``columns`` is the number of output channels per
    program.
    """
    x, y0, before = _strip(across, height, rows, block)
    k = tl.arange(0, depth)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = channel < p
    column = _column(channel, p)
    taps = _taps(weight_ptr, k, column, kept, p, p)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    for i in tl.range(rows + 2, num_stages=stages):
        y = y0 - 1 + i
        total, upper, middle = _conv3x3(
            x_ptr, y, x, before, height, width, k, taps, upper, middle, p
        )
        h = total + bias
        at = (((before + y - 1) * width + x) * p)[:, None] + channel[None, :]
        row = tl.where((y > y0) & (y <= height), width, 0)
        valid = (x < row)[:, None] & kept[None, :]
        if gated:
            residual = tl.load(residual_ptr + at, mask=valid, other=0.0).to(tl.float32)
            result = (2.0 * h + residual) * (_sigmoid(h) - 0.5)
        else:
            result = 2.0 * h * _sigmoid(h)
        tl.store(y_ptr + at, result.to(y_ptr.dtype.element_ty), mask=valid)


def strips(x: Tensor, groups: int, halo: int, resident: int) -> tuple[tuple[int, int], int, int]:
    """Divide feature maps into strips, one per program, and choose the number of rows of a strip.

    The cost model is: rows of a program times rounds of programs.  On an H200, for each kernel at
    510x339 and 1920x1080, it selects from 4 to 32 rows the fastest, or one that is 5% slower.

    Args:
        x: the feature maps (N, H, W, P).
        groups: the number of groups of output channels; each program computes one.
        halo: the rows that a program reads beyond its own.
        resident: the number of programs that run on an SM at the same time.

    Returns:
        The grid, the number of strips side by side, and the rows of a program.
    """
    batch, height, width = x.shape[:3]
    across = triton.cdiv(width, BLOCK)
    processors = 132  # in the interpreter, where the choice does not matter
    if x.is_cuda:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count

    def programs(rows: int) -> int:
        return batch * across * triton.cdiv(height, rows)

    def time(rows: int) -> int:
        rounds = triton.cdiv(programs(rows) * groups, processors * resident)
        return rounds * (rows + halo)

    rows = min((32, 16, 8, 4), key=time)
    return (programs(rows), groups), across, rows


def conv(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Compute ``silu(conv(x))``, or ``gate(conv(x), residual)`` if there is a residual.

    Args:
        x: feature maps (N, H, W, P), contiguous, float16 or bfloat16.
        weight: (9 P P,) with the dtype of ``x``: the weights of one layer, from pack_spab.
        bias: (P,) float32: the bias of that layer, from pack_spab.
        residual: a tensor like ``x``, or None.

    Returns:
        A tensor like ``x``.
    """
    y = torch.empty_like(x)
    height, width, p = x.shape[1:]
    depth = triton.next_power_of_2(p)
    columns = min(depth, COLUMNS)
    grid, across, rows = strips(x, triton.cdiv(p, columns), 2, 3 if depth <= 32 else 2)
    with torch.cuda.device_of(x):
        _launchable(conv_kernel)[grid](
            x,
            weight,
            bias,
            residual,
            y,
            height,
            width,
            across,
            p=p,
            depth=depth,
            columns=columns,
            gated=residual is not None,
            rows=rows,
            block=BLOCK,
            stages=3 if depth <= 32 else 2,
        )
    return y
