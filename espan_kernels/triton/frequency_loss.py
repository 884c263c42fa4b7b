"""The frequency-aware loss in Triton: torch.ops.espan_triton.frequency_loss and its _gradient.

The op, its checks and layouts are those of torch.ops.espan.frequency_loss.  There are three
launches: the first computes the pixel and high-pass terms, and stores the sign of each high-pass
value in a byte; the second computes the DCT term and the gradient; the third adds up the programs'
sums.  Images whose sides are not multiples of 8 use the reference, because the gradient of a
reflected edge would affect pixels of other programs.
"""
# Triton does not allow the annotations of typing inside a kernel, nor unpacking in a tuple:
# mypy: disable-error-code="no-untyped-def, assignment, misc"
# ruff: noqa: RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels._checks import check_frequency_loss
from espan_kernels.frequency_loss import (
    frequency_loss_by_reference,
    frequency_loss_gradient_by_reference,
    register_gradient,
)
from espan_kernels.frequency_loss_reference import dct_matrix, gaussian
from espan_kernels.triton.gate import _launchable

BLOCK = 128  # pixel columns per program: one per thread
ROWS = 32  # rows per program of the first kernel
SUM_BLOCK = 256
BLUR1, BLUR2 = (tl.constexpr(weight) for weight in gaussian())
# cos(k pi / 16) / 2; C4 is also the value of row 0 of the DCT matrix.
C4, C1, C2, C3, _, C5, C6, C7 = (tl.constexpr(v) for v in dct_matrix()[:, 0].tolist())
SIZES = ["height", "width", "tiles_x", "tiles_y", "elements"]


@triton.jit
def _reflected(i, n):
    """The source index of pixel ``i`` of a row of ``n`` that is continued by reflection."""
    period = tl.maximum(2 * (n - 1), 1)
    i = i % period
    i = tl.where(i < 0, i + period, i)
    return tl.where(i < n, i, period - i)


@triton.jit
def _edge(i, n):
    """The factor of pixel ``i`` in the transposed blur: multiply by it, blur, divide by it."""
    return tl.where((i == 0) | (i == n - 1), 2.0, 1.0)


@triton.jit
def _blur(a, b, c, d, e):
    """The middle of five neighbours, blurred; infinite values behave as in the reference."""
    return c + BLUR1 * (b + d - 2.0 * c) + BLUR2 * (a + e - 2.0 * c)


@triton.jit
def _sign(v):
    return tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, v))


@triton.jit
def _dct(v):
    """The orthonormal DCT-II of a tuple of eight, from its even and odd halves."""
    a, b, c, d, e, f, g, h = v
    s0 = a + h
    s1 = b + g
    s2 = c + f
    s3 = d + e
    d0 = a - h
    d1 = b - g
    d2 = c - f
    d3 = d - e
    return (
        ((s0 + s3) + (s1 + s2)) * C4,
        d0 * C1 + d1 * C3 + d2 * C5 + d3 * C7,
        (s0 - s3) * C2 + (s1 - s2) * C6,
        d0 * C3 - d1 * C7 - d2 * C1 - d3 * C5,
        ((s0 + s3) - (s1 + s2)) * C4,
        d0 * C5 - d1 * C1 + d2 * C7 + d3 * C3,
        (s0 - s3) * C6 - (s1 - s2) * C2,
        d0 * C7 - d1 * C5 + d2 * C3 - d3 * C1,
    )


@triton.jit
def _dct_transposed(v):
    a, b, c, d, e, f, g, h = v
    s0 = (a + e) * C4 + (c * C2 + g * C6)
    s1 = (a - e) * C4 + (c * C6 - g * C2)
    s2 = (a - e) * C4 - (c * C6 - g * C2)
    s3 = (a + e) * C4 - (c * C2 + g * C6)
    d0 = b * C1 + d * C3 + f * C5 + h * C7
    d1 = b * C3 - d * C7 - f * C1 - h * C5
    d2 = b * C5 - d * C1 + f * C7 + h * C3
    d3 = b * C7 - d * C5 + f * C3 - h * C1
    return s0 + d0, s1 + d1, s2 + d2, s3 + d3, s3 - d3, s2 - d2, s1 - d1, s0 - d0


@triton.jit
def _transposed(v):
    """Transpose each 8 x 8 block of eight tensors (8 M,)."""
    a, b, c, d, e, f, g, h = v
    n: tl.constexpr = a.shape[0]
    even = tl.join(tl.join(a, e), tl.join(c, g))
    odd = tl.join(tl.join(b, f), tl.join(d, h))
    square = tl.reshape(tl.join(even, odd), (n // 8, 8, 8))
    even, odd = tl.split(tl.reshape(tl.permute(square, (0, 2, 1)), (n, 2, 2, 2)))
    ae, cg = tl.split(even)
    bf, dh = tl.split(odd)
    a, e = tl.split(ae)
    b, f = tl.split(bf)
    c, g = tl.split(cg)
    d, h = tl.split(dh)
    return a, b, c, d, e, f, g, h


@triton.jit
def _difference(sr_ptr, hr_ptr, at):
    return tl.load(hr_ptr + at).to(tl.float32) - tl.load(sr_ptr + at).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def high_pass_kernel(
    sr_ptr,
    hr_ptr,
    signs_ptr,
    sums_ptr,
    height,
    width,
    tiles_x,
    tiles_y,
    squared: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    """The pixel and high-pass sums of ``block`` x ``rows`` pixels, and the high-pass signs."""
    tile = tl.program_id(0)
    x = tile % tiles_x * block + tl.arange(0, block)
    y0 = tile // tiles_x % tiles_y * rows
    plane = (tile // tiles_x // tiles_y).to(tl.int64) * height * width
    x0 = _reflected(x - 2, width)
    x1 = _reflected(x - 1, width)
    x2 = _reflected(x, width)
    x3 = _reflected(x + 1, width)
    x4 = _reflected(x + 2, width)
    pixel = tl.zeros((block,), tl.float32)
    high = tl.zeros((block,), tl.float32)
    # The previous rows: h blurred along x, d not.  Each needs its own zero tensor: Triton would
    # treat variables that share one as the same variable in the loop.
    h0 = tl.zeros((block,), tl.float32)
    h1 = tl.zeros((block,), tl.float32)
    h2 = tl.zeros((block,), tl.float32)
    h3 = tl.zeros((block,), tl.float32)
    d0 = tl.zeros((block,), tl.float32)
    d1 = tl.zeros((block,), tl.float32)
    for i in tl.range(rows + 4):
        at = plane + _reflected(y0 - 2 + i, height).to(tl.int64) * width
        d2 = _difference(sr_ptr, hr_ptr, at + x2)
        h4 = _blur(
            _difference(sr_ptr, hr_ptr, at + x0),
            _difference(sr_ptr, hr_ptr, at + x1),
            d2,
            _difference(sr_ptr, hr_ptr, at + x3),
            _difference(sr_ptr, hr_ptr, at + x4),
        )
        v = d0 - _blur(h0, h1, h2, h3, h4)
        y = y0 + i - 4
        valid = x < tl.where((i >= 4) & (y < height), width, 0)
        pixel += tl.where(valid, d0 * d0 if squared else tl.abs(d0), 0.0)
        high += tl.where(valid, tl.abs(v), 0.0)
        if signs_ptr is not None:
            sign = tl.where(v > 0, 1, tl.where(v < 0, -1, tl.where(v == 0, 0, -128)))
            tl.store(signs_ptr + (plane + y.to(tl.int64) * width + x), sign.to(tl.int8), mask=valid)
        h0 = h1
        h1 = h2
        h2 = h3
        h3 = h4
        d0 = d1
        d1 = d2
    tl.store(sums_ptr + 2 * tile, tl.sum(pixel))
    tl.store(sums_ptr + 2 * tile + 1, tl.sum(high))


@triton.jit
def _weighted_sign(at, edge):
    sign = tl.load(at).to(tl.float32)
    return tl.where(sign < -1.0, float("nan"), sign) * edge  # -128 stands for NaN


@triton.jit
def _sign_row(signs_ptr, y, x, height, width):
    """Row ``y`` of the signs multiplied by their edge factors, unblurred and blurred along x."""
    y = _reflected(y, height)
    signs_ptr += y.to(tl.int64) * width
    edge = _edge(y, height)
    s = ()
    for i in tl.static_range(5):
        s = s + (_weighted_sign(signs_ptr + x[i], edge * _edge(x[i], width)),)
    return s[2], _blur(s[0], s[1], s[2], s[3], s[4])


@triton.jit(do_not_specialize=SIZES)
def dct_kernel(
    sr_ptr,
    hr_ptr,
    signs_ptr,
    grad_ptr,
    scale_ptr,
    sums_ptr,
    height,
    width,
    tiles_x,
    tiles_y,
    elements,
    pixel_weight,
    hf_weight,
    dct_weight,
    squared: tl.constexpr,
    block: tl.constexpr,
):
    """The DCT sum of ``block`` x 8 pixels, and the gradient if ``grad_ptr`` is not None.

    It divides by the number of ``elements`` itself: if sizes are symbolic under torch.compile,
    Inductor passes a float computed from them as an integer.
    """
    tile = tl.program_id(0)
    x = tile % tiles_x * block + tl.arange(0, block)
    y = tile // tiles_x % tiles_y * 8
    plane = (tile // tiles_x // tiles_y).to(tl.int64) * height * width
    inside = x < width
    at = plane + y.to(tl.int64) * width + tl.where(inside, x, 0)
    d = ()
    for i in tl.static_range(8):
        d = d + (_difference(sr_ptr, hr_ptr, at + i * width),)
    c = _dct(_transposed(_dct(d)))
    # Thread 8 n + k holds frequency k along y of block n; c[i] is frequency i along x.
    total = tl.abs(c[0])
    for i in tl.static_range(1, 8):
        total += tl.abs(c[i])
    tl.store(sums_ptr + tile, tl.sum(tl.where(inside, total, 0.0)))
    if grad_ptr is not None:
        s = ()
        for i in tl.static_range(8):
            s = s + (_sign(c[i]),)
        spectrum = _dct_transposed(_transposed(_dct_transposed(s)))
        columns = ()
        for i in tl.static_range(5):
            columns = columns + (_reflected(x + (i - 2), width),)
        rows = ()
        for i in tl.static_range(12):
            rows = rows + (_sign_row(signs_ptr + plane, y + (i - 2), columns, height, width),)
        scale = -tl.load(scale_ptr) / elements
        for i in tl.static_range(8):
            edge = _edge(y + i, height) * _edge(x, width)
            blurred = _blur(
                rows[i][1], rows[i + 1][1], rows[i + 2][1], rows[i + 3][1], rows[i + 4][1]
            )
            high = (rows[i + 2][0] - blurred) / edge
            pixel = 2.0 * d[i] if squared else _sign(d[i])
            total = pixel_weight * pixel + hf_weight * high + dct_weight * spectrum[i]
            result = (scale * total).to(grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + at + i * width, result, mask=inside)


@triton.jit
def _sum(sums_ptr, n, stride: tl.constexpr, block: tl.constexpr):
    """Sum ``n`` values in float64, in a fixed order."""
    i = tl.arange(0, block)
    total = tl.zeros((block,), tl.float64)
    for start in range(0, n, block):
        at = sums_ptr + stride * (start + i).to(tl.int64)
        total += tl.load(at, mask=start + i < n, other=0.0).to(tl.float64)
    return tl.sum(total)


@triton.jit
def sum_kernel(
    sums_ptr,
    dct_sums_ptr,
    loss_ptr,
    terms_ptr,
    tiles,
    dct_tiles,
    elements,
    pixel_weight,
    hf_weight,
    dct_weight,
    block: tl.constexpr,
):
    """Compute the terms and the loss, in a single program."""
    pixel = _sum(sums_ptr, tiles, 2, block) / elements
    high = _sum(sums_ptr + 1, tiles, 2, block) / elements
    dct = _sum(dct_sums_ptr, dct_tiles, 1, block) / elements
    tl.store(terms_ptr, pixel.to(tl.float32))
    tl.store(terms_ptr + 1, high.to(tl.float32))
    tl.store(terms_ptr + 2, dct.to(tl.float32))
    tl.store(loss_ptr, (pixel_weight * pixel + hf_weight * high + dct_weight * dct).to(tl.float32))


def _whole_blocks(image: Tensor) -> bool:
    return image.shape[2] % 8 == 0 and image.shape[3] % 8 == 0


def _run(
    sr: Tensor,
    hr: Tensor,
    grad: Tensor | None,
    scale: Tensor | None,
    pixel: float,
    hf: float,
    dct: float,
    squared: bool,
) -> tuple[Tensor, Tensor]:
    """Return loss and terms of contiguous images of whole blocks; fill ``grad`` if not None."""
    planes = sr.shape[0] * sr.shape[1]
    height, width = sr.shape[2:]
    elements = sr.numel()
    tiles_x, tiles_y = triton.cdiv(width, BLOCK), triton.cdiv(height, ROWS)
    tiles, dct_tiles = planes * tiles_x * tiles_y, planes * tiles_x * (height // 8)
    signs = None if grad is None else torch.empty_like(sr, dtype=torch.int8)
    sums, dct_sums = (sr.new_empty(n, dtype=torch.float32) for n in (2 * tiles, dct_tiles))
    loss, terms = sr.new_empty((), dtype=torch.float32), sr.new_empty(3, dtype=torch.float32)
    with torch.cuda.device_of(sr):
        _launchable(high_pass_kernel)[(tiles,)](
            sr,
            hr,
            signs,
            sums,
            height,
            width,
            tiles_x,
            tiles_y,
            squared=squared,
            rows=ROWS,
            block=BLOCK,
        )
        _launchable(dct_kernel)[(dct_tiles,)](
            sr,
            hr,
            signs,
            grad,
            scale,
            dct_sums,
            height,
            width,
            tiles_x,
            height // 8,
            elements,
            pixel,
            hf,
            dct,
            squared=squared,
            block=BLOCK,
        )
        _launchable(sum_kernel)[(1,)](
            sums,
            dct_sums,
            loss,
            terms,
            tiles,
            dct_tiles,
            elements,
            pixel,
            hf,
            dct,
            block=SUM_BLOCK,
        )
    return loss, terms


@triton_op("espan_triton::frequency_loss", mutates_args={})
def frequency_loss(
    sr: Tensor, hr: Tensor, pixel: float, hf: float, dct: float, squared: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`espan_kernels.frequency_loss`."""
    check_frequency_loss("espan_triton::frequency_loss", sr, hr)
    if not _whole_blocks(sr):
        return frequency_loss_by_reference(sr, hr, pixel, hf, dct, squared)
    sr, hr = sr.contiguous(), hr.contiguous()
    return _run(sr, hr, None, None, pixel, hf, dct, squared)


@triton_op("espan_triton::frequency_loss_gradient", mutates_args={})
def frequency_loss_gradient(
    sr: Tensor,
    hr: Tensor,
    scale: Tensor,
    pixel: float,
    hf: float,
    dct: float,
    squared: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See :func:`espan_kernels.frequency_loss_gradient`."""
    check_frequency_loss("espan_triton::frequency_loss_gradient", sr, hr, scale)
    if not _whole_blocks(sr):
        return frequency_loss_gradient_by_reference(sr, hr, scale, pixel, hf, dct, squared)
    result = torch.empty_like(sr)
    grad = result if result.is_contiguous() else result.new_empty(result.shape)
    sr, hr = sr.contiguous(), hr.contiguous()
    loss, terms = _run(sr, hr, grad, scale, pixel, hf, dct, squared)
    return loss, terms, result if grad is result else result.copy_(grad)


register_gradient("espan_triton")
