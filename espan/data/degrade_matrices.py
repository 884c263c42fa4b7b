"""Blurs and resizes as matrices: image -> sum of rows @ image @ columns.T."""

from __future__ import annotations

import functools
import math
from typing import Literal

import numpy as np
import torch

from espan.imaging.resize import mirrored

Method = Literal["area", "bilinear", "bicubic"]
METHODS: tuple[Method, ...] = ("area", "bilinear", "bicubic")
SUPPORT = {"area": 0.5, "bilinear": 1.0, "bicubic": 2.0}  # half the width of the filter


def kernel(
    kind: str, size: int, *, sigma: tuple[float, float], angle: float, beta: float, cutoff: float
) -> np.ndarray:
    """(size, size) fp64, of sum 1: the kernel of a `espan.data.degrade.Blur`.

    With q the squared distance from the centre in standard deviations, a Gaussian is exp(-q / 2), a
    generalised one exp(-q**beta / 2), and a plateau 1 / (q**beta + 1).  "sinc" is the ideal
    circular low-pass filter, J1(cutoff * r) / r, truncated.
    """
    x = np.arange(size) - size // 2
    across, down = np.meshgrid(x, x)
    if kind == "sinc":
        r = np.hypot(across, down)
        bessel = torch.special.bessel_j1(torch.from_numpy(cutoff * r)).numpy()  # NumPy has none
        values = np.where(r == 0, cutoff / 2, bessel / np.where(r == 0, 1, r))
        return values / values.sum()
    first = across * np.cos(angle) + down * np.sin(angle)
    second = down * np.cos(angle) - across * np.sin(angle)
    q = (first / sigma[0]) ** 2 + (second / sigma[1]) ** 2
    if kind.startswith("plateau"):
        values = 1 / (q**beta + 1)
    else:
        values = np.exp(-0.5 * (q**beta if kind.startswith("generalized") else q))
    return values / values.sum()


def separable(kernel: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Vectors u, v, such that the sum of outer(u, v) is the kernel.

    The fewest with which no pixel of an image in 0-255 changes by more than half a gray level.
    """
    u, s, v = np.linalg.svd(kernel)
    rest = kernel.copy()
    terms: list[tuple[np.ndarray, np.ndarray]] = []
    while 255 * np.abs(rest).sum() > 0.5:
        i = len(terms)
        terms.append((u[:, i] * s[i], v[i]))
        rest -= np.outer(*terms[-1])
    return terms


def blurring(taps: np.ndarray, length: int) -> np.ndarray:
    """(length, length) fp32: correlation with an odd number of taps; borders are mirrored."""
    r = len(taps) // 2
    padded = np.zeros((length, length + 2 * r + 1), np.float32)
    padded[:, : 2 * r + 1] = taps
    # With one column less, each row begins one column later than the row above.
    wide = padded.reshape(-1)[: length * (length + 2 * r)].reshape(length, -1)
    return _folded(wide, r)


@functools.lru_cache(256)
def resizing(method: Method, old: int, new: int) -> np.ndarray:
    """(new, old) fp32, of row sum 1; not to be changed.

    The whole of one axis is mapped to the whole of the other.  A shrinking filter is stretched by
    old / new.  Bicubic is that of `imresize`, up to rounding.
    """
    step = old / new
    stretch = max(step, 1.0)
    r = math.ceil(SUPPORT[method] * stretch)
    centres = (np.arange(new) + 0.5)[:, None] * step - 0.5
    distance = np.abs(centres - np.arange(-r, old + r)) / stretch
    if method == "area":  # the part of each input pixel that an output pixel covers
        half = (step + 1) / (2 * stretch)
        weights = np.clip(half - distance, 0, min(step, 1.0) / stretch)
    elif method == "bilinear":
        weights = np.clip(1 - distance, 0, None)
    else:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = np.where(distance <= 1, near, np.where(distance <= 2, far, 0.0))
    return _folded((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), r)


def _folded(wide: np.ndarray, r: int) -> np.ndarray:
    """Adds the r columns on each side, which are beyond the border, to their mirror images."""
    length = wide.shape[1] - 2 * r
    result = wide[:, r : r + length].copy()
    inside = mirrored(np.arange(-r, length + r), length)
    for column in (*range(r), *range(r + length, length + 2 * r)):
        result[:, inside[column]] += wide[:, column]
    return result
