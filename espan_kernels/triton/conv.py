"""A 3x3 convolution of a SPAN block with its activation or gate, in one Triton launch.

Feature maps are (N, H, W, P) in float16 or bfloat16; products are summed in float32 on the tensor
cores.  Weights have the layout of pack_spab: 16 input channels by P output channels.

A program processes a strip of ``block`` columns from top to bottom.  It reads each input row three
times, once for each column of taps, and multiplies it by all three rows of taps.  The products are
added to the sums of three output rows.  The weights stay in shared memory.

The three rows of taps are one matrix.  Its products take many registers, so a program computes 32
output channels at most.

The 1x1 convolution of a learned gate needs all channels of a pixel in the registers of one program:
the sums, rounded to 16 bits, are an operand of one more product.  With more than 32 channels, each
tap is then a matrix of its own.
"""
# Triton does not allow the annotations of typing inside a kernel, nor unpacking in a tuple:
# mypy: disable-error-code="no-untyped-def, assignment, misc"
# ruff: noqa: RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from espan_kernels.triton.gate import _launchable
from espan_kernels.triton.point import activated, gated

# Not specialised: Triton would compile other binaries for sizes of 1 and multiples of 16.
SIZES = ["height", "width", "across"]

BLOCK = 64  # pixel columns per program: the M of a tensor-core product on Hopper
# Maximum number of output channels whose three rows of taps are one matrix: with 64, registers
# would spill.
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
def _taps(weight_ptr, k, column, kept, p: tl.constexpr, packed: tl.constexpr, inputs: tl.constexpr):
    """Load the three columns of taps of a 3x3 convolution, each with three rows of taps.

    ``k`` are the input channels, of ``inputs`` in all; the taps are zero from P on.  ``column``
    selects from the ``packed`` columns of the weights; the taps are zero where not ``kept``.
    """
    offset, mask = _three_rows(column, kept, packed)
    at = weight_ptr + _of_row(k, packed)[:, None] + offset[None, :]
    mask = (k < p)[:, None] & mask[None, :]
    step: tl.constexpr = inputs * 3 * packed
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
def _products(x_ptr, y, x, before, height, width, k, taps, products, p: tl.constexpr):
    """Add the products of input row ``y`` with three rows of taps to ``products``."""
    at = x_ptr + (((before + y) * width + x) * p)[:, None] + k[None, :]
    row = tl.where((y >= 0) & (y < height), width, 0)  # pixels in row y: none outside the image
    of_p = (k < p)[None, :]
    a = tl.load(at - p, mask=((x > 0) & (x <= row))[:, None] & of_p, other=0.0)
    products = tl.dot(a, taps[0], products)
    a = tl.load(at, mask=(x < row)[:, None] & of_p, other=0.0)
    products = tl.dot(a, taps[1], products)
    a = tl.load(at + p, mask=(x < row - 1)[:, None] & of_p, other=0.0)
    return tl.dot(a, taps[2], products)


@triton.jit
def _conv3x3(x_ptr, y, x, before, height, width, k, taps, upper, middle, p: tl.constexpr):
    """Add the products of input row ``y`` to the sums of three output rows.

    ``upper`` holds the sums of output row y - 1, which lack only the lowest row of taps; ``middle``
    those of row y.  Returns the complete row y - 1, and ``upper`` and ``middle`` for the next row.
    """
    products = tl.zeros((middle.shape[0], 4 * middle.shape[1]), tl.float32)
    products = _products(x_ptr, y, x, before, height, width, k, taps, products, p)
    first, second, third = _split_rows(products)
    return upper + third, middle + second, first


@triton.jit
def _taps_apart(weight_ptr, k, column, kept, p: tl.constexpr):
    """Load the nine taps of a 3x3 convolution as matrices of their own, column by column."""
    at = weight_ptr + _of_row(k, p)[:, None] + _of_column(column)[None, :]
    mask = (k < p)[:, None] & kept[None, :]
    taps = ()
    for tap in tl.static_range(9):
        offset = (tap // 3 * (p // 16 * 3) + tap % 3) * (16 * p)
        taps = taps + (tl.load(at + offset, mask=mask, other=0.0),)
    return taps


@triton.jit
def _conv3x3_apart(x_ptr, y, x, before, height, width, k, taps, upper, middle, p: tl.constexpr):
    """:func:`_conv3x3` with the taps of :func:`_taps_apart`."""
    at = x_ptr + (((before + y) * width + x) * p)[:, None] + k[None, :]
    row = tl.where((y >= 0) & (y < height), width, 0)
    of_p = (k < p)[None, :]
    lower = tl.zeros(middle.shape, tl.float32)
    for dx in tl.static_range(3):
        inside = (x >= 1 - dx) & (x < row + 1 - dx)
        a = tl.load(at + (dx - 1) * p, mask=inside[:, None] & of_p, other=0.0)
        upper = tl.dot(a, taps[3 * dx + 2], upper)
        middle = tl.dot(a, taps[3 * dx + 1], middle)
        lower = tl.dot(a, taps[3 * dx], lower)
    return upper, middle, lower


@triton.jit
def _gate_taps(weight_ptr, k, column, kept, p: tl.constexpr):
    """Load the 1x1 convolution of a learned gate, whose rows are in the order of its columns."""
    row = _column(k, p)
    at = weight_ptr + (row // 16 * (16 * p) + _of_row(row % 16, p))[:, None]
    mask = (k < p)[:, None] & kept[None, :]
    return tl.load(at + _of_column(column)[None, :], mask=mask, other=0.0)


@triton.jit(do_not_specialize=SIZES)
def conv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    gate_weight_ptr,
    gate_bias_ptr,
    y_ptr,
    height,
    width,
    across,
    p: tl.constexpr,
    depth: tl.constexpr,
    columns: tl.constexpr,
    function: tl.constexpr,
    apart: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
    stages: tl.constexpr,
):
    """Compute ``block`` x ``rows`` pixels of a convolution with the activation ``function``.

    With a residual, ``function`` is a gate, learned if it has weights.  ``depth`` is P rounded up
    to a power of 2; ``columns`` is the number of output channels per program.
    """
    x, y0, before = _strip(across, height, rows, block)
    k = tl.arange(0, depth)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = channel < p
    column = _column(channel, p)
    if apart:
        taps = _taps_apart(weight_ptr, k, column, kept, p)
    else:
        taps = _taps(weight_ptr, k, column, kept, p, p, p)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    if gate_weight_ptr is not None:
        gate_taps = _gate_taps(gate_weight_ptr, k, column, kept, p)
        gate_bias = tl.load(gate_bias_ptr + column, mask=kept, other=0.0)[None, :]
    upper = tl.zeros((block, columns), tl.float32)
    middle = tl.zeros((block, columns), tl.float32)
    for i in tl.range(rows + 2, num_stages=stages):
        y = y0 - 1 + i
        if apart:
            total, upper, middle = _conv3x3_apart(
                x_ptr, y, x, before, height, width, k, taps, upper, middle, p
            )
        else:
            total, upper, middle = _conv3x3(
                x_ptr, y, x, before, height, width, k, taps, upper, middle, p
            )
        o = total + bias
        at = (((before + y - 1) * width + x) * p)[:, None] + channel[None, :]
        row = tl.where((y > y0) & (y <= height), width, 0)
        valid = (x < row)[:, None] & kept[None, :]
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + at, mask=valid, other=0.0).to(tl.float32)
            g = o
            if gate_weight_ptr is not None:
                rounded = o.to(x_ptr.dtype.element_ty)
                g = tl.dot(rounded, gate_taps) + gate_bias
                # With the unrounded sums, Triton 3.6 spills registers for Blackwell.
                o = rounded.to(tl.float32)
            result = gated(o, residual, g, function)
        else:
            result = activated(o, function)
        tl.store(y_ptr + at, result.to(y_ptr.dtype.element_ty), mask=valid)


def major_of(x: Tensor) -> int:
    """The major compute capability of the GPU; in the interpreter, Hopper's."""
    return torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 9


def strips(
    x: Tensor, groups: int, halo: int, resident: int, block: int = BLOCK
) -> tuple[tuple[int, int], int, int]:
    """Divide feature maps into strips, one per program, and choose the number of rows of a strip.

    The cost model is: rows of a program times rounds of programs.  On an H200, for each kernel at
    510x339 and 1920x1080, it selects from 4 to 32 rows the fastest, or one that is 5% slower.

    Args:
        x: the feature maps (N, H, W, P).
        groups: the number of groups of output channels; each program computes one.
        halo: the rows that a program reads beyond its own.
        resident: the number of programs that run on an SM at the same time.
        block: the columns of a strip.

    Returns:
        The grid, the number of strips side by side, and the rows of a program.
    """
    batch, height, width = x.shape[:3]
    across = triton.cdiv(width, block)
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


def options_of(depth: int, major: int, learned: bool) -> dict[str, int]:
    """Options of :func:`conv_kernel` on compute capability ``major``.

    A learned gate needs all channels in one program.  Without the matrix instructions of Hopper and
    Blackwell, whose operands are in shared memory, the sums of 64 leave registers for 32 columns of
    pixels only.
    """
    options = {"columns": depth, "block": BLOCK, "stages": 3, "apart": False}
    if depth <= COLUMNS:
        # For Blackwell, Triton 3.6 would spill 208 bytes of a learned gate with three rows of taps.
        return options | {"apart": learned and major == 10}
    if not learned:
        return options | {"columns": COLUMNS, "stages": 2}
    return options | {"block": BLOCK if major in (9, 10) else 32, "stages": 1, "apart": True}


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    function: str,
    residual: Tensor | None = None,
    gate_conv: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
) -> Tensor:
    """Compute a 3x3 convolution and a function of it.

    Args:
        x: feature maps (N, H, W, P), contiguous, float16 or bfloat16.
        weight: (9 P P,) with the dtype of ``x``: the weights of one layer, from pack_spab.
        bias: (P,) float32: the bias of that layer, from pack_spab.
        function: an activation; with a residual, a gate.
        residual: a tensor like ``x``, or None.
        gate_conv: weight and bias of the 1x1 convolution of a learned gate, from pack_spab.

    Returns:
        A tensor like ``x``.
    """
    y = torch.empty_like(x)
    height, width, p = x.shape[1:]
    depth = triton.next_power_of_2(p)
    options = options_of(depth, major_of(x), gate_conv[0] is not None)
    groups = triton.cdiv(p, options["columns"])
    grid, across, rows = strips(x, groups, 2, 3 if depth <= 32 else 2, options["block"])
    with torch.cuda.device_of(x):
        _launchable(conv_kernel)[grid](
            x,
            weight,
            bias,
            residual,
            *gate_conv,
            y,
            height,
            width,
            across,
            p=p,
            depth=depth,
            function=function,
            rows=rows,
            **options,
        )
    return y
