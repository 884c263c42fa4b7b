"""LR crops, computed from HR crops and their surroundings as MATLAB's imresize would.

Every LR crop equals the same crop of the whole LR image, bit for bit, because both passes round to
uint8 exactly as they do for the whole image.

- x2 and x4: the weights are multiples of 2**-8 and 2**-12.  22 bits hold every product with uint8
  and every sum, so that fp32 is exact in any order.
- x3: the weights are multiples of 1/81, so that no sum is within 1/162 of a half; the error of fp32
  is at most 0.0004, in any order.
- others: fp64, with the weights of `imresize` at this position, in its order of operations.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from espan.imaging.resize import mirrored, taps


def reach(scale: int) -> int:
    """HR pixels that the kernel, 4 * scale wide, needs on each side of an LR pixel's own."""
    return (3 * scale + 1) // 2


def context(hr: np.ndarray, scale: int, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The HR pixels that the LR pixels top ... top + size[0] - 1, left ... are computed from.

    hr  (s*H, s*W, 3), any type; its borders are mirrored as by imresize.

    Returns (s*h + 2*reach, s*w + 2*reach, 3): a view, or a copy at a border.
    """
    r = reach(scale)
    height, width = (scale * n + 2 * r for n in size)
    return region(hr, scale * top - r, scale * left - r, height, width)


def region(hr: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) of HR, mirrored beyond its borders: a view, or a copy at a border."""
    borders = []
    for axis, (first, length) in enumerate(((top, height), (left, width))):
        end = first + length
        if first >= 0 and end <= hr.shape[axis]:
            hr = hr[first:end] if axis == 0 else hr[:, first:end]
        else:
            borders.append((axis, mirrored(np.arange(first, end), hr.shape[axis])))
    for axis, indices in borders:  # last, so that they copy no more than the region
        hr = hr.take(indices, axis)
    return hr


@functools.lru_cache(4096)
def weights(scale: int, start: int, length: int) -> np.ndarray:
    """(length, taps): the weights of HR rows s*i - reach ... for each LR row i.

    fp32 for x2, x3 and x4, fp64 for others.
    """
    outputs = range(start, start + length)
    positions, values = taps(outputs, 1 / scale)
    column = positions - scale * np.arange(start, start + length)[:, None] + reach(scale)
    # At x3 the first or last tap may lie one further out, with a weight of zero.
    inside = (column >= 0) & (column < scale + 2 * reach(scale))
    assert not values[~inside].any()
    result = np.zeros((length, scale + 2 * reach(scale)))
    result[np.nonzero(inside)[0], column[inside]] = values[inside]
    return result.astype(np.float32 if scale in (2, 3, 4) else np.float64)


def downscale(pixels: Any, rows: Any, columns: Any, scale: int) -> Any:
    """LR (..., h, w, 3) of a context.  NumPy arrays or torch tensors; whole numbers in floats.

    Args:
        pixels: (..., H, W, 3), from `context`, converted to the type of the weights.
        rows: (..., h, taps), from `weights`.
        columns: (..., w, taps).
        scale: HR pixels per LR pixel.
    """
    *batch, height, width, channels = pixels.shape
    h, w = rows.shape[-2], columns.shape[-2]
    lines = _pass(pixels.reshape(*batch, height, width * channels), rows, scale)
    lines = lines.reshape(*batch, h, width, channels).swapaxes(-3, -2)
    lines = _pass(lines.reshape(*batch, width, h * channels), columns, scale)
    return lines.reshape(*batch, w, h, channels).swapaxes(-3, -2)


def _pass(lines: Any, weights: Any, scale: int) -> Any:
    """(..., H, n) -> (..., h, n), rounded to whole numbers in 0-255, halves up."""
    library: Any = np if isinstance(lines, np.ndarray) else torch
    taps = weights.shape[-1]
    if library is np and weights.dtype == np.float32:
        # fp32 sums are correct in any order (see above): 0.15 ms for a patch of 48 at x4, where the
        # loop below takes 0.40 ms.
        windows = np.lib.stride_tricks.sliding_window_view(lines, taps, axis=-2)
        total = np.einsum("...hnt,...ht->...hn", windows[..., ::scale, :, :], weights)
    elif library is torch and weights.dtype == torch.float32:
        # Two kernels on a GPU, where the loop below would launch 32 at x4.
        total = (lines.unfold(-2, taps, scale) * weights[..., None, :]).sum(-1)
    else:
        end = scale * (weights.shape[-2] - 1) + 1
        total = lines[..., 0:end:scale, :] * weights[..., 0, None]
        for tap in range(1, taps):
            total += lines[..., tap : tap + end : scale, :] * weights[..., tap, None]
    total += 0.5
    return library.clip(library.floor(total), 0, 255)
