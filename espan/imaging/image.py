"""An image in memory, as it is read from and written to files."""

from dataclasses import dataclass

import numpy as np

from espan.errors import ImageError

# The colour space that an ICC profile must name (bytes 16 to 20 of its header) to fit the channels.
_PROFILE_SPACE = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}


def profile_fits(profile: bytes, channels: int) -> bool:
    """Whether an ICC profile describes images of this many channels."""
    return profile[16:20] == _PROFILE_SPACE[channels]


def profile_is_whole(profile: bytes) -> bool:
    """Whether an ICC profile has its signature and is as long as it states."""
    size = int.from_bytes(profile[:4], "big")
    return profile[36:40] == b"acsp" and 128 <= size <= len(profile)


def without_opaque_alpha(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) -> the colours alone, if there is alpha and it is at its maximum everywhere."""
    if pixels.shape[2] % 2 or (pixels[..., -1] != np.iinfo(pixels.dtype).max).any():
        return pixels
    return np.ascontiguousarray(pixels[..., :-1])


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels, and what a viewer needs to show them in the right colours and size.

    pixels       (H, W, C) uint8 (0 to 255) or uint16 (0 to 65535), C-contiguous, upright.
                 C = 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha; alpha is not premultiplied.
    icc_profile  the colour profile of the gray or RGB channels; None means sRGB, or png_colour.
    dpi          horizontal and vertical pixels per inch; None where the file states none.
    png_colour   chunks of a PNG file that state another colour space than sRGB (cICP, or gAMA and
                 cHRM); empty for none.  Only PNG can keep them.
    lossless     whether a WebP file is written without loss, as the one that was read was.

    Raises ImageError if the array is anything else, or the profile is for other channels.
    """

    pixels: np.ndarray
    icc_profile: bytes | None = None
    dpi: tuple[float, float] | None = None
    png_colour: bytes = b""
    lossless: bool = False

    def __post_init__(self) -> None:
        """Check the array and the profile."""
        pixels = self.pixels
        if pixels.dtype not in (np.uint8, np.uint16):
            raise ImageError(f"pixels must be uint8 or uint16, got {pixels.dtype}")
        if pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4 or 0 in pixels.shape:
            raise ImageError(
                f"pixels must have shape (height, width, 1 to 4 channels), got {pixels.shape}"
            )
        if not pixels.flags.c_contiguous:
            raise ImageError("the pixels of an image must be C-contiguous")
        if self.icc_profile is not None and not profile_fits(self.icc_profile, pixels.shape[2]):
            found = self.icc_profile[16:20].decode("ascii", "replace").strip()
            raise ImageError(
                f"the colour profile is for {found!r} pixels, but the image has "
                f"{pixels.shape[2]} channels"
            )
