"""The frequency-aware loss in plain PyTorch, with an explicit gradient.

All operations before the norms are linear, so only the difference ``d = HR - SR`` is needed.  The
paper leaves three details open.  All implementations agree on them:

* **Borders** are reflected without repeating the edge pixel (NumPy's ``reflect``).  Where the image
  is smaller than the padding, the reflection repeats: a row 0 1 2 continues 1 0 1 2 1 ..., and a
  single pixel is repeated.  For the DCT, an edge that is not a multiple of 8 is padded in the same
  way.
* **The mean of the DCT** is over all coefficients, including those of padded blocks, so that
  padding does not make the term larger.
* **The blur** is computed as ``d + w1 (sum of the two nearest - 2 d) + w2 (...)``, so that the high
  frequencies of a constant difference are exactly zero, without a gradient of random sign.

The constants of the loss are defined here.  ``csrc/frequency_loss.h`` repeats their values for C++,
and a test compares them.
"""

import math

import torch
from torch import Tensor

SIGMA = 1.1  # standard deviation of the 5x5 Gaussian, in pixels
HF_WEIGHT, DCT_WEIGHT = 1.0, 0.001  # default weights: alpha and beta in Sec. 3.3 of the paper


def gaussian() -> tuple[float, float]:
    """The weights at distance 1 and 2; the five weights along an axis sum to 1."""
    one, two = (math.exp(-k * k / (2 * SIGMA * SIGMA)) for k in (1, 2))
    total = 1 + 2 * one + 2 * two
    return one / total, two / total


def dct_matrix() -> Tensor:
    """The matrix (8, 8) of the orthonormal DCT-II, float64; rows are frequencies."""
    k, n = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * n + 1) * k / 16) / 2
    matrix[0] = math.sqrt(1 / 8)
    return matrix


def reflected(size: int, before: int, after: int) -> list[int]:
    """The source index of each pixel -before ... size + after - 1 of a reflected row."""
    period = max(2 * (size - 1), 1)
    return [min(i % period, (period - i) % period) for i in range(-before, size + after)]


def _take(d: Tensor, dim: int, before: int, after: int) -> Tensor:
    index = torch.tensor(reflected(d.shape[dim], before, after), device=d.device)
    return d.index_select(dim, index)


def _blur(d: Tensor) -> Tensor:
    """Apply the 5x5 Gaussian, one axis after the other."""
    w1, w2 = gaussian()
    for dim in (3, 2):
        size = d.shape[dim]
        padded = _take(d, dim, 2, 2)
        far_before, before, _, after, far_after = (padded.narrow(dim, k, size) for k in range(5))
        d = d + w1 * (before + after - 2 * d) + w2 * (far_before + far_after - 2 * d)
    return d


def _blur_transposed(s: Tensor) -> Tensor:
    """Apply the transpose of :func:`_blur`.

    In one period of the reflected image, an edge pixel occurs once and every other pixel twice, and
    on that period the blur is symmetric.  Hence the transpose is: divide by the occurrences, blur,
    multiply by the occurrences.  The factor 2 / occurrences is 2 at the edges and 1 elsewhere; so
    multiply by it, blur, and divide by it.
    """
    edge_y, edge_x = (_edge_factor(s, dim) for dim in (2, 3))
    edge = edge_y[:, None] * edge_x
    return _blur(s * edge) / edge


def _edge_factor(s: Tensor, dim: int) -> Tensor:
    factor = s.new_ones(s.shape[dim])
    factor[0] = factor[-1] = 2
    return factor


def _coefficients(d: Tensor) -> Tensor:
    """The DCT of every 8x8 block, laid out like the padded image."""
    k = dct_matrix().to(d)
    for dim in (2, 3):
        if d.shape[dim] % 8:
            d = _take(d, dim, 0, -d.shape[dim] % 8)
    columns = k @ d.reshape(-1, 8, d.shape[3])
    return (columns.reshape(-1, 8) @ k.T).reshape(d.shape)


def _coefficients_transposed(c: Tensor, height: int, width: int) -> Tensor:
    """Apply the transpose of :func:`_coefficients` for an image of ``height`` x ``width``."""
    k = dct_matrix().to(c)
    columns = (c.reshape(-1, 8) @ k).reshape(-1, 8, c.shape[3])
    g = (k.T @ columns).reshape(c.shape)
    for dim, size in ((2, height), (3, width)):
        padded, g = g, g.narrow(dim, 0, size).clone()
        for i, source in enumerate(reflected(size, 0, padded.shape[dim] - size)[size:], size):
            g.select(dim, source).add_(padded.select(dim, i))
    return g


def _sign(v: Tensor) -> Tensor:
    """The derivative of ``|v|``: 0 at 0 and, unlike torch.sign, NaN where ``v`` is NaN."""
    return torch.where(v.isnan(), v, v.sign())


def _difference(sr: Tensor, hr: Tensor) -> Tensor:
    wide = torch.promote_types(sr.dtype, torch.float32)
    return hr.to(wide) - sr.to(wide)


def frequency_loss(
    sr: Tensor,
    hr: Tensor,
    pixel: float = 1.0,
    hf: float = HF_WEIGHT,
    dct: float = DCT_WEIGHT,
    squared: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute ``pixel * L + hf * HF + dct * DCT``, differentiable by autograd.

    With ``d = hr - sr``, the 5x5 Gaussian blur ``B`` (sigma 1.1) and the orthonormal DCT-II ``DCT``
    of 8x8 blocks, the terms are means over all elements: ``L = mean(d ** 2)``, or ``mean(|d|)``
    unless ``squared``; ``HF = mean(|d - B(d)|)`` (Eq. 7 of the ESPAN paper); ``DCT =
    mean(|DCT(d)|)`` (Eq. 8).

    Args:
        sr: (N, C, H, W), floating-point; 16-bit types are computed in float32.
        hr: a tensor with the shape and device of ``sr``, floating-point.
        pixel, hf, dct: weights of L, HF and DCT.
        squared: whether L is the mean square or the mean absolute difference.

    Returns:
        The loss, of shape (), and the three terms before weighting, of shape (3,).
    """
    d = _difference(sr, hr)
    terms = (
        (d.square() if squared else d.abs()).mean(),
        (d - _blur(d)).abs().mean(),
        _coefficients(d).abs().mean(),
    )
    loss = pixel * terms[0] + hf * terms[1] + dct * terms[2]
    return loss, torch.stack(terms)


def frequency_loss_gradient(
    sr: Tensor,
    hr: Tensor,
    scale: Tensor,
    pixel: float = 1.0,
    hf: float = HF_WEIGHT,
    dct: float = DCT_WEIGHT,
    squared: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the results of :func:`frequency_loss` and ``scale`` times the gradient for ``sr``.

    Args:
        sr: as for :func:`frequency_loss`.
        hr: as for :func:`frequency_loss`.
        scale: a tensor with one element, the gradient with respect to the loss.
        pixel, hf, dct, squared: as for :func:`frequency_loss`.

    Returns:
        The loss, the terms, and the gradient: a tensor like ``sr``, rounded to its dtype once, at
        the end.
    """
    loss, terms = frequency_loss(sr, hr, pixel, hf, dct, squared)
    d = _difference(sr, hr)
    height, width = d.shape[2:]
    difference = 2 * d if squared else _sign(d)
    high = _sign(d - _blur(d))
    high = high - _blur_transposed(high)
    signs = _sign(_coefficients(d))
    spectrum = _coefficients_transposed(signs, height, width)
    gradient = pixel / d.numel() * difference
    gradient = gradient + hf / d.numel() * high + dct / signs.numel() * spectrum
    return loss, terms, (-scale.to(d.dtype) * gradient).to(sr.dtype)
