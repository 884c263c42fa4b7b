"""The frequency-aware loss in Triton: torch.ops.espan_triton.frequency_loss and its _gradient.

The same op, checks and layouts as torch.ops.espan.frequency_loss.  A program takes a tile of up to
24 x 24 pixels, reads 32 x 32 and computes blur and DCT as products with 32 x 32 matrices that it
generates; through them a NaN spreads over the whole tile.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op

from espan_kernels._checks import check_frequency_loss
from espan_kernels.frequency_loss import register_gradient
from espan_kernels.triton.gate import _launchable

SIDE = 32  # pixels read along each side: the tile and, before and after it, a halo of 4
TILE_BLOCKS = 3
SUM_BLOCK = 256


@triton.jit
def _reflected(i, n):
    """Where pixel ``i`` of a row of ``n`` comes from if the row is continued by reflection."""
    period = tl.maximum(2 * (n - 1), 1)
    i = i % period
    i = tl.where(i < 0, i + period, i)
    return tl.where(i < n, i, period - i)


@triton.jit
def _sign(v):
    return tl.where(v > 0, 1.0, tl.where(v < 0, -1.0, v))


@triton.jit
def _product(a, b):
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _blur_matrix(i):
    """Along one axis; it is its own transpose."""
    distance = tl.abs(i[:, None] - i[None, :])
    weight = tl.where(distance == 0, 0.3695464595136593, 0.0)
    weight = tl.where(distance == 1, 0.24446039891162386, weight)
    return tl.where(distance == 2, 0.07076637133154645, weight)


@triton.jit
def _dct_matrix(i):
    """Rows are the frequencies, columns the pixels, of the blocks that begin at i = 0, 8, 16."""
    k = i[:, None] % 8
    m = (2 * (i[None, :] % 8) + 1) * k % 32  # cos(m pi / 16) / 2, by the symmetries of the cosine
    m = tl.minimum(m, 32 - m)
    q = tl.minimum(m, 16 - m)
    value = tl.where(q == 1, 0.4903926402016152, 0.0)
    value = tl.where(q == 2, 0.46193976625564337, value)
    value = tl.where(q == 3, 0.4157348061512726, value)
    value = tl.where(q == 4, 0.3535533905932738, value)
    value = tl.where(q == 5, 0.27778511650980114, value)
    value = tl.where(q == 6, 0.19134171618254492, value)
    value = tl.where(q == 7, 0.09754516100806417, value)
    value = tl.where(m > 8, -value, value)
    value = tl.where(k == 0, 0.3535533905932738, value)
    both = (i[:, None] >= 0) & (i[None, :] >= 0)
    return tl.where(both & (i[:, None] // 8 == i[None, :] // 8), value, 0.0)


@triton.jit
def _unpadding(i, begin, tile, size):
    """What adds padding's share, of pixels ``size`` and on, to the pixels it is made of."""
    at = begin + i
    to = tl.where(at < size, i, _reflected(at, size) - begin)
    inside = (i >= 0) & (i < tile)
    return tl.where((i[:, None] == to[None, :]) & inside[None, :], 1.0, 0.0)


@triton.jit
def frequency_loss_kernel(
    sr_ptr,
    hr_ptr,
    grad_ptr,
    scale_ptr,
    sums_ptr,
    height,
    width,
    tiles_y,
    tiles_x,
    pixel_weight,
    hf_weight,
    dct_weight,
    squared: tl.constexpr,
    gradient: tl.constexpr,
    side: tl.constexpr,
):
    """One tile: its three sums and, if ``gradient``, its pixels of the gradient."""
    program = tl.program_id(0)
    plane = (program // (tiles_y * tiles_x)).to(tl.int64) * height * width
    tile_y = program // tiles_x % tiles_y
    tile_x = program % tiles_x
    blocks_y = (height + 7) // 8
    blocks_x = (width + 7) // 8
    y0 = (blocks_y.to(tl.int64) * tile_y // tiles_y).to(tl.int32) * 8
    x0 = (blocks_x.to(tl.int64) * tile_x // tiles_x).to(tl.int32) * 8
    rows = (blocks_y.to(tl.int64) * (tile_y + 1) // tiles_y).to(tl.int32) * 8 - y0
    columns = (blocks_x.to(tl.int64) * (tile_x + 1) // tiles_x).to(tl.int32) * 8 - x0

    i = tl.arange(0, side) - 4
    y = _reflected(y0 + i, height)
    x = _reflected(x0 + i, width)
    at = plane + y[:, None].to(tl.int64) * width + x[None, :]
    d = tl.load(hr_ptr + at).to(tl.float32) - tl.load(sr_ptr + at).to(tl.float32)
    in_rows = (i >= 0) & (i < rows)
    in_columns = (i >= 0) & (i < columns)
    padded = in_rows[:, None] & in_columns[None, :]
    inside = padded & (y0 + i < height)[:, None] & (x0 + i < width)[None, :]

    pixel = d * d if squared else tl.abs(d)
    blur = _blur_matrix(i)
    hf = d - _product(_product(blur, d), blur)
    dct = _dct_matrix(i)
    dct_t = tl.trans(dct)
    coefficients = tl.where(padded, _product(_product(dct, d), dct_t), 0.0)
    tl.store(sums_ptr + 3 * program, tl.sum(tl.where(inside, pixel, 0.0)))
    tl.store(sums_ptr + 3 * program + 1, tl.sum(tl.where(inside, tl.abs(hf), 0.0)))
    tl.store(sums_ptr + 3 * program + 2, tl.sum(tl.abs(coefficients)))

    if gradient:
        # The blur is its own transpose between factors 2 and 1/2 at the image's edges.
        edge_y = tl.where((y == 0) | (y == height - 1), 2.0, 1.0)
        edge_x = tl.where((x == 0) | (x == width - 1), 2.0, 1.0)
        edge = edge_y[:, None] * edge_x[None, :]
        signs = _sign(hf) * edge
        hf = (signs - _product(_product(blur, signs), blur)) / edge
        back_y = dct_t
        back_x = dct
        if y0 + rows > height:
            back_y = _product(_unpadding(i, y0, rows, height), dct_t)
        if x0 + columns > width:
            back_x = _product(dct, tl.trans(_unpadding(i, x0, columns, width)))
        spectrum = _product(_product(back_y, _sign(coefficients)), back_x)
        pixel = d if squared else _sign(d)
        total = pixel_weight * pixel + hf_weight * hf + dct_weight * spectrum
        total = -tl.load(scale_ptr) * total
        tl.store(grad_ptr + at, total.to(grad_ptr.dtype.element_ty), mask=inside)


@triton.jit
def frequency_loss_sum_kernel(
    sums_ptr,
    loss_ptr,
    terms_ptr,
    tiles,
    elements,
    coefficients,
    pixel_weight,
    hf_weight,
    dct_weight,
    block: tl.constexpr,
):
    """The second stage, one program: the sums of all tiles in float64, in a fixed order."""
    i = tl.arange(0, block)
    pixel = tl.zeros((block,), tl.float64)
    hf = tl.zeros((block,), tl.float64)
    dct = tl.zeros((block,), tl.float64)
    for start in range(0, tiles, block):
        at = sums_ptr + 3 * (start + i).to(tl.int64)
        valid = start + i < tiles
        pixel += tl.load(at, mask=valid, other=0.0).to(tl.float64)
        hf += tl.load(at + 1, mask=valid, other=0.0).to(tl.float64)
        dct += tl.load(at + 2, mask=valid, other=0.0).to(tl.float64)
    mean_pixel = tl.sum(pixel) / elements
    mean_hf = tl.sum(hf) / elements
    mean_dct = tl.sum(dct) / coefficients
    loss = pixel_weight * mean_pixel + hf_weight * mean_hf + dct_weight * mean_dct
    tl.store(terms_ptr, mean_pixel.to(tl.float32))
    tl.store(terms_ptr + 1, mean_hf.to(tl.float32))
    tl.store(terms_ptr + 2, mean_dct.to(tl.float32))
    tl.store(loss_ptr, loss.to(tl.float32))


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
    """Loss and terms of contiguous images; fills ``grad``, if there is one."""
    planes = sr.shape[0] * sr.shape[1]
    height, width = sr.shape[2:]
    blocks_y, blocks_x = triton.cdiv(height, 8), triton.cdiv(width, 8)
    tiles_y, tiles_x = triton.cdiv(blocks_y, TILE_BLOCKS), triton.cdiv(blocks_x, TILE_BLOCKS)
    tiles = planes * tiles_y * tiles_x
    elements, coefficients = sr.numel(), planes * blocks_y * blocks_x * 64
    sums = sr.new_empty((tiles, 3), dtype=torch.float32)
    loss, terms = sr.new_empty((), dtype=torch.float32), sr.new_empty(3, dtype=torch.float32)
    with torch.cuda.device_of(sr):
        _launchable(frequency_loss_kernel)[(tiles,)](
            sr,
            hr,
            grad,
            scale,
            sums,
            height,
            width,
            tiles_y,
            tiles_x,
            pixel * (2 if squared else 1) / elements,
            hf / elements,
            dct / coefficients,
            squared=squared,
            gradient=grad is not None,
            side=SIDE,
        )
        _launchable(frequency_loss_sum_kernel)[(1,)](
            sums,
            loss,
            terms,
            tiles,
            elements,
            coefficients,
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
    """As torch.ops.espan.frequency_loss."""
    check_frequency_loss("espan_triton::frequency_loss", sr, hr)
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
    """As torch.ops.espan.frequency_loss_gradient."""
    check_frequency_loss("espan_triton::frequency_loss_gradient", sr, hr, scale)
    result = torch.empty_like(sr)
    grad = result if result.is_contiguous() else result.new_empty(result.shape)
    sr, hr = sr.contiguous(), hr.contiguous()
    loss, terms = _run(sr, hr, grad, scale, pixel, hf, dct, squared)
    return loss, terms, result if grad is result else result.copy_(grad)


register_gradient("espan_triton")
