"""The first convolution in Triton, one launch: torch.ops.espan_triton.head."""
# Triton does not allow the annotations of typing inside a kernel, nor unpacking in a tuple:
# mypy: disable-error-code="no-untyped-def, assignment, misc"
# ruff: noqa: RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels.head import check_inputs, empty_features, head_by_reference, sizes
from espan_kernels.triton.conv import (
    BLOCK,
    COLUMNS,
    SIZES,
    _column,
    _of_column,
    _of_row,
    _strip,
    major_of,
    strips,
)
from espan_kernels.triton.gate import _launchable
from espan_kernels.triton.point import activated
from espan_kernels.triton.unshuffle import unshuffled_head_kernel

WARPS = 8


def columns_of(p: int, major: int) -> int:
    """The number of channels per program on compute capability ``major``.

    The sums of nine rows of 32 channels take half of the registers.  That is too many on GPUs where
    the registers also hold the operands of the tensor cores.
    """
    return min(triton.next_power_of_2(p), COLUMNS if major in (9, 10) else 16)


@triton.jit
def _on_image(inside, x, y, height, width):
    """Whether a tap is on a pixel; ``inside`` is false left of the image and beyond the kernel."""
    return inside & (x < tl.where((y >= 0) & (y < height), width, 0))


@triton.jit
def _row(image_ptr, inside, x, y, height, width, stride_y):
    mask = _on_image(inside, x, y, height, width)
    return tl.load(image_ptr + y.to(tl.int64) * stride_y, mask=mask, other=0)


@triton.jit(do_not_specialize=[*SIZES, "stride_n", "stride_c", "stride_y", "stride_x"])
def head_kernel(
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
    kernel: tl.constexpr,
    activation: tl.constexpr,
    p: tl.constexpr,
    depth: tl.constexpr,
    columns: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    """Compute ``columns`` channels of ``block`` x ``rows`` pixels of the features.

    A row of taps has 3 ``kernel`` values RGBRGB...; ``depth`` is that number rounded up to a power
    of 2.  Each row of the image is read once and added to the sums of ``kernel`` rows of features.
    """
    x, y0, before = _strip(across, height, rows, block)
    channel = tl.program_id(1) * columns + tl.arange(0, columns)
    kept = channel < p
    column = _column(channel, p)
    k = tl.arange(0, depth)
    steps: tl.constexpr = (3 * kernel + 15) // 16
    of_row = weight_ptr + _of_row(k, p)[:, None] + _of_column(column)[None, :]
    mask = (k < 16 * steps)[:, None] & kept[None, :]
    taps = ()
    for dy in tl.static_range(kernel):
        offset = (dy // 3 * steps * 3 + dy % 3) * (16 * p)
        taps = taps + (tl.load(of_row + offset, mask=mask, other=0.0),)
    bias = tl.load(bias_ptr + column, mask=kept, other=0.0)[None, :]
    if mean_ptr is not None:
        mean = tl.load(mean_ptr + k % 3)[None, :]

    sums = ()
    for _ in tl.static_range(kernel):
        sums = sums + (tl.zeros((block, columns), tl.float32),)

    radius: tl.constexpr = kernel // 2
    x_in = x[:, None] + (k // 3 - radius)[None, :]
    inside = (x_in >= 0) & (k < 3 * kernel)[None, :]
    image_ptr += before // height * stride_n
    image_ptr += x_in.to(tl.int64) * stride_x + (k % 3).to(tl.int64)[None, :] * stride_c
    value = _row(image_ptr, inside, x_in, y0 - radius, height, width, stride_y)
    for i in tl.range(rows + 2 * radius, num_stages=1):
        y = y0 - radius + i
        a = value.to(tl.float32)
        if value.dtype == tl.uint8:
            a = a * (1.0 / 255.0)
        if mean_ptr is not None:
            # Zero outside the image, not -mean: the mean is subtracted before the zero padding.
            a = tl.where(_on_image(inside, x_in, y, height, width), a - mean, 0.0)
        value = _row(image_ptr, inside, x_in, y + 1, height, width, stride_y)
        a = a.to(weight_ptr.dtype.element_ty)
        # The first sums lack only the lowest taps and are now complete; the last ones are new.
        following = ()
        for dy in tl.static_range(kernel - 1, 0, -1):
            following = following + (tl.dot(a, taps[dy], sums[kernel - dy]),)
        sums = following + (tl.dot(a, taps[0]),)
        y -= radius
        at = (((before + y) * width + x) * p)[:, None] + channel[None, :]
        row = tl.where((y >= y0) & (y < height), width, 0)
        valid = (x < row)[:, None] & kept[None, :]
        result = activated(sums[0] + bias, activation)
        tl.store(y_ptr + at, result.to(y_ptr.dtype.element_ty), mask=valid)


@triton_op("espan_triton::head", mutates_args={})
def head(
    image: Tensor,
    packed: Tensor,
    mean: Tensor | None,
    channels: int,
    kernel: int,
    unshuffle: int = 1,
    activation: str = "none",
) -> Tensor:
    """See :func:`espan_kernels.head`.  float32 uses the reference: tensor cores would round it."""
    check_inputs(image, packed, mean, channels, kernel, unshuffle, activation)
    if packed.dtype == torch.float32:
        return head_by_reference(image, packed, mean, channels, kernel, unshuffle, activation)
    height, width = image.shape[2:]
    weight, bias = sizes(channels, kernel, unshuffle).split(packed)
    y = empty_features(image, packed, channels, unshuffle)
    p = y.shape[3]
    if unshuffle == 1:
        convolve = head_kernel
        columns = columns_of(p, major_of(image))
        sized = {"kernel": kernel, "depth": max(16, triton.next_power_of_2(3 * kernel))}
    else:
        convolve = unshuffled_head_kernel
        columns = min(triton.next_power_of_2(p), COLUMNS)
        sized = {"unshuffle": unshuffle}
    grid, across, rows = strips(y, triton.cdiv(p, columns), kernel - 1, 2)
    with torch.cuda.device_of(image):
        _launchable(convolve)[grid](
            image,
            weight,
            bias,
            mean,
            y,
            height,
            width,
            across,
            *image.stride(),
            **sized,
            activation=activation,
            p=p,
            columns=columns,
            rows=rows,
            block=BLOCK,
            num_warps=WARPS,
        )
    return y
