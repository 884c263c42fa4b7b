"""PIL images to arrays and back, keeping depth, alpha, orientation and colour profile.

`espan.imaging` is imported only where it is needed, because it loads libvips.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from espan.errors import ImageError, warn

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def to_array(image: Image.Image) -> tuple[np.ndarray, Callable[[np.ndarray], Image.Image]]:
    """Pixels (H, W, C), uint8 or uint16, C from 1 to 4, and a function that converts results back.

    Palette images become RGB or RGBA, 1-bit images gray, other colour spaces RGB; CMYK becomes
    sRGB by its profile or, without one, by libvips' default, as in files.  EXIF orientation is
    applied.

    Raises:
        ImageError: an empty image, or a 32-bit mode ("I" or "F"), whose range is not known.

    Warns:
        ImageWarning: what is dropped: a colour profile that is not for the pixels, PNG's gAMA and
            cHRM, or the transparent level of a 16-bit gray image, for which Pillow has no mode.
    """
    if 0 in image.size:
        raise ImageError(f"the image is empty ({image.width}x{image.height})")
    upright = ImageOps.exif_transpose(image)
    mode = upright.mode
    if mode in ("I", "F"):
        raise ImageError(
            f"images of mode {mode!r} have no defined range; convert the image to 'I;16' or 'L', "
            "or pass a NumPy array of uint16 or of floats in 0-1"
        )
    profile = image.info.get("icc_profile") or None
    if mode in _SIXTEEN_BIT:
        pixels = np.array(upright).astype(np.uint16, copy=False)
        if upright.has_transparency_data:
            warn("Pillow has no 16-bit gray with alpha; the image's transparent level is dropped")
    elif mode == "CMYK":
        pixels, profile = _from_cmyk(np.array(upright), profile), None
    else:
        pixels = np.array(upright.convert(_mode_for(upright)))
        if mode == "LAB":  # which Pillow converts to sRGB
            profile = None
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if profile is not None and not _fits(profile, pixels.shape[2]):
        warn(
            f"the colour profile of the {image.mode} image is not for its "
            f"{pixels.shape[2]} channels and is dropped"
        )
        profile = None
    if "gamma" in image.info or "chromaticity" in image.info:
        from espan.imaging.png_colour import pillow_chunk_names

        if names := pillow_chunk_names(image.info):
            warn(
                f"the image was read from a PNG file with {names}, which the result does not keep; "
                "its colours will look different from the file's; `espan upscale` keeps them"
            )

    def finish(result: np.ndarray) -> Image.Image:
        made = Image.fromarray(result[:, :, 0] if result.shape[2] == 1 else result)
        if profile:
            made.info["icc_profile"] = profile
        return made

    return pixels, finish


def read(path: str | os.PathLike[str]) -> Image.Image:
    """A file as a PIL image, read as `espan upscale` reads it.

    Raises:
        ImageError: a file that cannot be read, or 16-bit colour, which Pillow has no mode for.

    Warns:
        ImageWarning: as `read_image`, and where the file's PNG colour chunks are dropped.
    """
    from espan.imaging import read_image
    from espan.imaging.png_colour import chunk_names

    image = read_image(path)
    if image.pixels.dtype == np.uint16 and image.pixels.shape[2] > 1:
        raise ImageError(
            f"{os.fspath(path)} has 16 bits per channel in colour or with alpha, which a PIL image "
            "cannot hold; use `espan upscale`, or pass the pixels as a NumPy array of uint16"
        )
    if image.png_colour:
        warn(
            f"{os.fspath(path)}: a PIL image cannot hold the PNG colour chunks "
            f"{chunk_names(image.png_colour)}; they are lost and the colours will look different; "
            "`espan upscale` keeps them"
        )
    pixels = image.pixels[:, :, 0] if image.pixels.shape[2] == 1 else image.pixels
    made = Image.fromarray(pixels)
    if image.icc_profile:
        made.info["icc_profile"] = image.icc_profile
    return made


def _mode_for(image: Image.Image) -> str:
    alpha = image.has_transparency_data
    if image.mode in ("1", "L", "LA", "La"):
        return "LA" if alpha else "L"
    return "RGBA" if alpha else "RGB"


def _fits(profile: bytes, channels: int) -> bool:
    from espan.imaging.image import profile_fits

    return profile_fits(profile, channels)


def _from_cmyk(pixels: np.ndarray, profile: bytes | None) -> np.ndarray:
    import pyvips

    from espan.imaging.cmyk import cmyk_to_srgb

    height, width, channels = pixels.shape
    image = pyvips.Image.new_from_memory(pixels.data, width, height, channels, "uchar")
    image = image.copy(interpretation="cmyk")
    if profile is not None:
        image.set_type(pyvips.GValue.blob_type, "icc-profile-data", profile)
    return cmyk_to_srgb(image).numpy()
