"""Read PNG, JPEG, WebP, TIFF, GIF and BMP files, recognised by their content."""

import io
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.BmpImagePlugin
import pyvips

from espan.errors import ImageError, warn
from espan.imaging.cmyk import cmyk_to_srgb
from espan.imaging.image import Image, profile_fits, profile_is_whole, without_opaque_alpha
from espan.imaging.png_colour import colour_chunks, hdr_transfer, png_chunks
from espan.imaging.tiff_samples import colour_and_alpha, tiff_tags

# The suffixes in use for the formats that `_sniff` knows; read_image looks only at the content.
IMAGE_SUFFIXES = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".webp"}
    | {".tif", ".tiff", ".btf", ".tf8", ".gif", ".bmp", ".dib"}
)

# 16384 x 16384 pixels: 0.8 GB as 8-bit RGB, and 12.9 GB after x4.  A larger size is more often that
# of a damaged or malicious header than of an image that somebody wants to upscale.
MAX_PIXELS = 2**28

# Higher values are damage: libvips takes at most 2.5e7, and microscopes state about 1e5.
_MAX_DPI = 1e6

# TransferFunction, WhitePoint and PrimaryChromaticities: the colour space of a TIFF file without a
# profile.
_TIFF_COLOUR_TAGS = (301, 318, 319)


_DAMAGED_PROFILE = "its colour profile is damaged and is dropped; treated as sRGB"
_JPEG_END = b"\xff\xd9"  # the EOI marker


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Whether the file name ends like that of an image (`IMAGE_SUFFIXES`, in any case)."""
    return Path(path).suffix.lower() in IMAGE_SUFFIXES


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read one image file.

    The format is recognised by the content, not by the name.  8 and 16-bit samples keep their
    depth; 1-bit, palette and other small depths become 8-bit gray or RGB; CMYK is converted to sRGB
    by the file's profile or, without one, by libvips' default.  A transparent colour becomes an
    alpha channel; premultiplied alpha is divided out.  The EXIF orientation is applied.  Other
    metadata is not read.

    Raises ImageError, which names the file, if it cannot be read, is damaged or truncated, holds
    samples of another kind (float, LAB, 32-bit, ...), or claims more than max_pixels pixels, which
    is checked in the header, before memory is allocated for the pixels.
    Warns with ImageWarning if only the first of several frames or pages is read, if extra TIFF
    samples other than alpha, a damaged profile or an unsupported colour space are dropped, if a
    JPEG file lacks its end marker, and if the image is HDR.
    """
    name = os.fspath(path)
    data, kind = _read_file(name)
    if kind == "bmp":
        return _decode_bmp(name, data, max_pixels)
    # libvips also keeps messages of failures that it recovered from, of earlier files for example.
    pyvips.vips_lib.vips_error_clear()
    try:
        try:
            return _decode_vips(name, data, kind, max_pixels)
        except pyvips.Error:
            if kind != "jpeg" or data.endswith(_JPEG_END):
                raise
            # Any warning of the decoder means that more than the marker is missing.
            image = _decode_vips(name, data + _JPEG_END, kind, max_pixels, fail_on="warning")
            warn(f"{name}: lacks the marker at the end of a JPEG file; all its pixels are there")
            return image
    except pyvips.Error as error:
        raise ImageError(
            f"{name}: damaged, truncated or unsupported {kind.upper()} file ({_cause(error)})"
        ) from None


def _read_file(name: str) -> tuple[bytes, str]:
    """The bytes of a file and the format they are in."""
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{name}: is a folder; expected an image file")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{name}: is not a regular file; expected an image file")
        with open(name, "rb") as file:
            head = file.read(16)
            kind = _sniff(head)
            if kind is None:
                found = f"begins with {head[:8]!r}" if head else "is empty"
                raise ImageError(
                    f"{name}: {found}; expected a PNG, JPEG, WebP, TIFF, GIF or BMP image"
                )
            return head + file.read(), kind
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read this file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read ({error.strerror})") from None


def _sniff(head: bytes) -> str | None:
    """The format of a file with these first 16 bytes, by the name of libvips' loader."""
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head.startswith(b"BM"):
        return "bmp"
    return None


def _cause(error: pyvips.Error) -> str:
    """The first line of libvips' message that names a cause."""
    lines = [line.strip() for line in str(error).splitlines()]
    causes = [line for line in lines if line and not line.startswith("unable to ")]
    return causes[0] if causes else "libvips gives no reason"


def _check_size(name: str, width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: its header claims {width} x {height} pixels; at most {max_pixels} are read"
        )


def _decode_vips(
    name: str, data: bytes, kind: str, max_pixels: int, *, fail_on: str = "error"
) -> Image:
    # Loaded from memory, because libvips takes "[...]" at the end of a file name for options.
    load = getattr(pyvips.Image, f"{kind}load_buffer")
    image = load(data, access="sequential", fail_on=fail_on)
    _check_size(name, image.width, image.height, max_pixels)
    chunks = dict(png_chunks(data)) if kind == "png" else {}
    pages = _animation_frames(chunks) if kind == "png" else image.get_n_pages()
    if pages > 1:
        warn(f"{name}: holds {pages} frames or pages; only the first is read")
    if kind == "tiff":
        tags = tiff_tags(data)
        image, dropped = colour_and_alpha(name, image, tags)
        if dropped:
            warn(
                f"{name}: {dropped} extra sample(s) of each pixel are dropped, because the "
                f"ExtraSamples tag does not say that they are alpha"
            )
    else:
        tags = {}

    is_cmyk = image.interpretation == "cmyk" and image.format in ("uchar", "ushort")
    if is_cmyk:
        image = cmyk_to_srgb(image)
        profile = None
    else:
        profile = _profile(name, image)
        if profile is None and b"iCCP" in chunks:
            warn(f"{name}: {_DAMAGED_PROFILE}")
    if (
        image.format not in ("uchar", "ushort")
        or image.bands > 4
        or image.interpretation not in ("b-w", "grey16", "srgb", "rgb16", "rgb")
    ):
        raise ImageError(
            f"{name}: holds {image.bands} x {image.format} samples ({image.interpretation}); "
            f"expected 8 or 16-bit gray, RGB or CMYK"
        )

    pixels = image.numpy().reshape(image.height, image.width, image.bands)
    if kind == "gif":  # libvips adds alpha for the sake of later frames
        pixels = without_opaque_alpha(pixels)
    if profile is not None and not profile_fits(profile, image.bands):
        warn(f"{name}: its colour profile is not for its {image.bands} channels and is dropped")
        profile = None
    png_colour = colour_chunks(chunks)
    if transfer := hdr_transfer(png_colour):
        warn(f"{name}: is HDR ({transfer} in its cICP chunk); the networks are trained on SDR")
    if profile is None and _exif_says_adobe_rgb(image):
        warn(f"{name}: is Adobe RGB by its EXIF data but has no profile; treated as sRGB")
    if profile is None and not is_cmyk and any(tag in tags for tag in _TIFF_COLOUR_TAGS):
        warn(f"{name}: its TIFF colour tags (301, 318, 319) are dropped; treated as sRGB")
    orientation = image.get("orientation") if image.get_typeof("orientation") else 1
    stated = _states_resolution(data, kind, chunks, tags, image)
    dpi = _dpi(image.xres * 25.4, image.yres * 25.4) if stated else None
    if orientation >= 5 and dpi is not None:
        dpi = dpi[::-1]
    lossless = kind == "webp" and _is_lossless_webp(data)
    return Image(_upright(pixels, orientation), profile, dpi, png_colour, lossless)


def _animation_frames(chunks: Mapping[bytes, bytes]) -> int:
    """The number of frames of a PNG file; libvips reads the first and does not report others."""
    control = chunks.get(b"acTL", b"")
    return int.from_bytes(control[:4], "big") if control else 1


def _profile(name: str, image: pyvips.Image) -> bytes | None:
    if not image.get_typeof("icc-profile-data"):
        return None
    profile = bytes(image.get("icc-profile-data"))
    if not profile_is_whole(profile):
        warn(f"{name}: {_DAMAGED_PROFILE}")
        return None
    return profile


def _exif_says_adobe_rgb(image: pyvips.Image) -> bool:
    """Cameras write "uncalibrated" with interoperability index R03, others colour space 2."""

    def value(field: str) -> str:
        return str(image.get(field)).split(" ")[0] if image.get_typeof(field) else ""

    space = value("exif-ifd2-ColorSpace")
    return space == "2" or (space == "65535" and value("exif-ifd4-InteroperabilityIndex") == "R03")


def _states_resolution(
    data: bytes,
    kind: str,
    chunks: Mapping[bytes, bytes],
    tags: Mapping[int, Any],
    image: pyvips.Image,
) -> bool:
    """Whether the resolution is the file's; libvips has a default for files without one."""
    if kind == "png":
        return chunks.get(b"pHYs", b"")[8:] == b"\1"  # in a unit of length
    if kind == "tiff":
        return 282 in tags  # XResolution
    jfif = kind == "jpeg" and data[2:4] == b"\xff\xe0" and data[6:11] == b"JFIF\0"
    return (jfif and data[13] > 0) or bool(image.get_typeof("exif-ifd0-XResolution"))


def _dpi(x: float, y: float) -> tuple[float, float] | None:
    return (x, y) if 0 < x < _MAX_DPI and 0 < y < _MAX_DPI else None


def _is_lossless_webp(data: bytes) -> bool:
    at = 12
    while at + 8 <= len(data):
        if data[at : at + 4] == b"VP8L":
            return True
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    return False


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8; any other value means 1)."""
    if 5 <= orientation <= 8:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_bmp(name: str, data: bytes, max_pixels: int) -> Image:
    """Decode a BMP file with Pillow; libvips has no decoder for it."""
    try:
        # Not PIL.Image.open, which has its own size limit.
        image: PIL.Image.Image = PIL.BmpImagePlugin.BmpImageFile(io.BytesIO(data))
        _check_size(name, *image.size, max_pixels)
        if image.mode not in ("L", "RGB", "RGBA"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        pixels = np.array(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's parsers raise exceptions of many types on bad data.
        raise ImageError(f"{name}: damaged, truncated or unsupported BMP file ({error})") from None
    dpi = image.info.get("dpi")
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    profile = _bmp_profile(data)
    if profile is not None and not profile_is_whole(profile):
        warn(f"{name}: {_DAMAGED_PROFILE}")
        profile = None
    if profile is not None and not profile_fits(profile, pixels.shape[2]):
        warn(f"{name}: its colour profile is not for its {pixels.shape[2]} channels and is dropped")
        profile = None
    return Image(pixels, profile, _dpi(*dpi) if dpi else None)


def _bmp_profile(data: bytes) -> bytes | None:
    """The profile embedded in a BMP file with a BITMAPV5HEADER, which Pillow does not read."""
    if data[14:18] != b"\x7c\0\0\0" or data[14 + 56 : 14 + 60] != b"DEBM":  # 124 bytes, "MBED"
        return None
    offset, size = struct.unpack_from("<II", data, 14 + 112)
    profile = data[14 + offset : 14 + offset + size]
    return profile if len(profile) == size >= 128 else None
