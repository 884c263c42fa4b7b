"""Bicubic resizing, equal to MATLAB's imresize bit for bit."""

import math
from fractions import Fraction

import numpy as np

from espan.errors import EspanError

# Output rows computed at once: in float64, with the 6120 values of a 2040-pixel RGB row, the
# accumulator and the product are 1.5 MB each and stay in the cache.
_ROWS = 32


def modcrop(image: np.ndarray, multiple: int) -> np.ndarray:
    """Crop (H, W, ...) at the bottom and the right to multiples of an integer.

    Returns a view.  Raises EspanError if nothing would be left.
    """
    height, width = (n - n % multiple for n in image.shape[:2])
    if height == 0 or width == 0:
        raise EspanError(
            f"an image of {image.shape[1]}x{image.shape[0]} has fewer than {multiple} pixels on a "
            "side"
        )
    return image[:height, :width]


def imresize(image: np.ndarray, scale: Fraction | float) -> np.ndarray:
    """Resize by MATLAB's bicubic method.

    image   (H, W) or (H, W, C), uint8, uint16 or floating-point.
    scale   positive, below or above 1.  Pass ratios such as 2/3 as a Fraction, because rounding a
            float might make the size one too large.

    Returns (ceil(scale * H), ceil(scale * W)[, C]).  uint8 and uint16 keep their type and are
    rounded, halves up, after each of the two passes, as MATLAB does.  Floats become float64 and
    are neither rounded nor clipped.

    The kernel is the cubic of a = -0.5, widened by 1 / scale when shrinking; borders are mirrored
    with the border pixel repeated; the vertical pass comes first.
    Raises EspanError for other arrays and scales.
    """
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise EspanError(f"an image must have shape (H, W) or (H, W, C), got {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and image.dtype.kind != "f":
        raise EspanError(f"imresize takes uint8, uint16 or floats, got {image.dtype}")
    if not (math.isfinite(scale) and scale > 0):
        raise EspanError(f"a scale must be a positive number, got {scale}")
    for axis in (0, 1):
        rows = np.ascontiguousarray(image.swapaxes(0, axis))
        image = _resize_rows(rows, scale).swapaxes(0, axis)
    return np.ascontiguousarray(image)


def _resize_rows(image: np.ndarray, scale: Fraction | float) -> np.ndarray:
    """Resize the first axis of a contiguous array."""
    length = image.shape[0]
    positions, weights = taps(range(math.ceil(scale * length)), float(scale))
    indices = mirrored(positions, length)
    flat = image.reshape(length, -1)
    dtype = image.dtype if image.dtype.kind == "u" else np.dtype(np.float64)
    result = np.empty((len(indices), flat.shape[1]), dtype)
    for start in range(0, len(indices), _ROWS):
        part = slice(start, start + _ROWS)
        total = np.zeros_like(result[part], np.float64)
        for index, weight in zip(indices[part].T, weights[part].T, strict=True):
            total += weight[:, None] * flat[index]
        if dtype.kind == "u":
            np.floor(total + 0.5, out=total)
            np.clip(total, 0, np.iinfo(dtype).max, out=total)
        result[part] = total
    return result.reshape(-1, *image.shape[1:])


def taps(outputs: range, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The input rows that each of these output rows is computed from, and their weights.

    Returns two (len(outputs), taps) arrays: positions, which may lie beyond the image (see
    `mirrored`), and float64 weights.  The operations and their order are those of MATLAB's function
    `contributions`, so that the weights, and with them the rounding, are the same.
    """
    stretch = min(scale, 1.0)
    width = 4 / stretch
    centre = np.arange(outputs.start + 1, outputs.stop + 1) / scale + 0.5 * (1 - 1 / scale)
    first = np.floor(centre - width / 2)
    positions = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = stretch * _cubic(stretch * (centre[:, None] - positions))
    weights /= weights.sum(axis=1, keepdims=True)
    used = (weights != 0).any(axis=0)
    return positions.astype(np.int64)[:, used] - 1, weights[:, used]


def mirrored(positions: np.ndarray, length: int) -> np.ndarray:
    """Positions beyond an axis of `length` pixels, mirrored into it with the border repeated."""
    indices = np.mod(positions, 2 * length)
    return np.where(indices < length, indices, 2 * length - 1 - indices)


def _cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
