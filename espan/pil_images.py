"""PIL images to arrays and back, without losing depth, alpha, orientation or colour profile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from espan.errors import ImageError

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def to_array(image: Image.Image) -> tuple[np.ndarray, Callable[[np.ndarray], Image.Image]]:
    """Pixels (H, W, C), uint8 or uint16 with C from 1 to 4, and what makes an image of such pixels.

    Palette images become RGB or RGBA, CMYK and other colour spaces RGB, 1-bit gray; EXIF
    orientation is applied.

    Raises:
        ImageError: an empty image, or a 32-bit mode ("I" or "F"), whose range is not known.
    """
    if 0 in image.size:
        raise ImageError(f"the image is empty ({image.width}x{image.height})")
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("I", "F"):
        raise ImageError(
            f"images of mode {upright.mode!r} have no defined range; convert to 'I;16' or 'L', or "
            "pass a NumPy array of uint16 or of floats in 0-1"
        )
    if upright.mode in _SIXTEEN_BIT:
        pixels = np.array(upright).astype(np.uint16, copy=False)
    else:
        pixels = np.array(upright.convert(_mode_for(upright)))
    profile = image.info.get("icc_profile") if image.mode != "CMYK" else None

    def finish(result: np.ndarray) -> Image.Image:
        made = Image.fromarray(result[:, :, 0] if result.shape[2] == 1 else result)
        if profile:
            made.info["icc_profile"] = profile
        return made

    return (pixels[:, :, None] if pixels.ndim == 2 else pixels), finish


def _mode_for(image: Image.Image) -> str:
    alpha = "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if image.mode in ("1", "L", "LA", "La"):
        return "LA" if alpha else "L"
    return "RGBA" if alpha else "RGB"
