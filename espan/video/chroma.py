"""Doubling and halving the resolution of chroma, at its true position.

Along each axis, a chroma sample lies either on the first of its two luma samples ("cosited": the
horizontal position in most video) or in the middle between them.  A resampling that confuses the
two shifts colours by half a pixel against luma, or by two after an enlargement by four.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Chroma is interpolated by Catmull-Rom splines: bilinear interpolation halves the contrast of the
# finest chroma detail midway between samples, and the network was trained on images that have all
# of it.  The weights of four neighbours at 1/2, and at 1/4 from the second.
_AT_HALF = (-1 / 16, 9 / 16, 9 / 16, -1 / 16)
_AT_QUARTER = (-9 / 128, 111 / 128, 29 / 128, -3 / 128)


def double(samples: Tensor, dim: int, length: int, *, cosited: bool) -> Tensor:
    """Interpolate along `dim` to `length`, twice the present one or one less."""
    if cosited:
        first, second = samples, _weighted(samples, dim, 1, _AT_HALF)
    else:
        first = _weighted(samples, dim, 2, _AT_QUARTER[::-1])
        second = _weighted(samples, dim, 1, _AT_QUARTER)
    both = torch.stack([first, second], dim=dim % samples.ndim + 1)
    return both.flatten(dim % samples.ndim, dim % samples.ndim + 1).narrow(dim, 0, length)


def halve(samples: Tensor, dim: int, *, cosited: bool) -> Tensor:
    """Average along `dim`: an odd length is first extended by its last sample.

    The weights are 1/2 1/2 between two luma samples, and 1/4 1/2 1/4 around a cosited one.
    """
    if samples.shape[dim] % 2:
        samples = torch.cat([samples, samples.narrow(dim, -1, 1)], dim)
    even, odd = samples.unflatten(dim, (-1, 2)).unbind(dim % samples.ndim + 1)
    total = even + odd
    if not cosited:
        return total.mul_(0.5)
    total.add_(even)
    length = odd.shape[dim]
    total.narrow(dim, 1, length - 1).add_(odd.narrow(dim, 0, length - 1))
    total.narrow(dim, 0, 1).add_(even.narrow(dim, 0, 1))
    return total.mul_(0.25)


def _weighted(samples: Tensor, dim: int, before: int, weights: tuple[float, ...]) -> Tensor:
    """The weighted sum of four neighbours, the first `before` samples back; edges are repeated."""
    length = samples.shape[dim]
    total = torch.zeros_like(samples)
    for offset, weight in enumerate(weights, start=-before):
        at = torch.arange(offset, offset + length, device=samples.device).clamp_(0, length - 1)
        total.add_(samples.index_select(dim, at), alpha=weight)
    return total
