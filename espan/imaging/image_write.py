"""Write PNG, JPEG, WebP, TIFF and BMP files, whole or not at all."""

import io
import os
import stat
import struct
from pathlib import Path

import numpy as np
import PIL.Image
import pyvips

from espan.errors import ImageError, warn
from espan.files import atomic_write
from espan.imaging.image import Image
from espan.imaging.png_colour import chunk_names, with_colour_chunks

_FORMATS = {
    "png": "png",
    "jpg": "jpeg",
    "jpeg": "jpeg",
    "jpe": "jpeg",
    "jfif": "jpeg",
    "webp": "webp",
    "tif": "tiff",
    "tiff": "tiff",
    "bmp": "bmp",
}

# The longest side that the encoders support: libjpeg's JPEG_MAX_DIMENSION, WebP's 14 bits.
_MAX_SIDE = {"jpeg": 65500, "webp": 16383}

# A BMP file states its size in 32 bits; its headers take less than 1 kB.
_MAX_BMP_BYTES = 2**32 - 1024

# Options of libvips' encoders.
# PNG: mean of four 2040 x 1356 photographs, two cores, time and size with the filter "avg":
#   level 1: 44 ms, 3.88 MB; level 3: 76 ms, 2.51 MB; level 6: 209 ms, 2.40 MB.
#   At level 3, "none": 81 ms, 3.56 MB; "up": 72 ms, 2.57 MB; "all" (adaptive): 133 ms, 2.44 MB.
# JPEG: 4:4:4, because half the chroma resolution would lose part of what was restored.
# WebP: lossy WebP always has half the chroma resolution; "smart" lessens what that loses.
# TIFF: LZW takes a half to a third of deflate's time, for files that are 7 to 17 % larger.
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "png": {"compression": 3, "filter": "avg"},
    "jpeg": {"Q": 95, "subsample_mode": "off", "optimize_coding": True},
    "webp": {"Q": 95, "smart_subsample": True},
    "tiff": {"compression": "lzw", "predictor": "horizontal", "resunit": "inch"},
}

# libvips' names of 8 and 16-bit pixels.
_SPACES = {"gray": ("b-w", "grey16"), "rgb": ("srgb", "rgb16")}

# The offsets of a classic TIFF are 32-bit; 16 MB are left for its tables.
_PLAIN_TIFF_BYTES = 2**32 - 2**24


def check_output(
    path: str | os.PathLike[str],
    width: int,
    height: int,
    channels: int,
    *,
    format: str | None = None,
) -> str:
    """Find the format to write, and check that it can hold an image of this size and channels.

    Returns "png", "jpeg", "webp", "tiff" or "bmp".  Raises ImageError if the suffix or the given
    format is unknown, if the format has no alpha channel but the image has (2 or 4 channels), or
    if the image is too large for it.  Worth calling before a long computation.
    """
    name = os.fspath(path)
    asked = Path(name).suffix[1:] if format is None else format
    kind = _FORMATS.get(asked.lower())
    if kind is None:
        known = ", ".join(_FORMATS)
        what = f"the suffix {'.' + asked!r}" if format is None else f"the format {format!r}"
        if format is None and not asked:
            what = "a name without a suffix"
        raise ImageError(f"{name}: {what} names no format that can be written; known: {known}")
    if kind == "jpeg" and channels in (2, 4):
        raise ImageError(
            f"{name}: JPEG has no alpha channel and the image has one; "
            f"write png, webp or tiff, or remove the alpha channel first"
        )
    row_bytes = 4 * width if channels in (2, 4) else -(-channels * width // 4) * 4
    if kind == "bmp" and height * row_bytes > _MAX_BMP_BYTES:
        raise ImageError(
            f"{name}: {width} x {height} pixels are too many for BMP, which is limited to 4 GiB; "
            f"write png or tiff"
        )
    limit = _MAX_SIDE.get(kind)
    if limit is not None and max(width, height) > limit:
        raise ImageError(
            f"{name}: {width} x {height} pixels are too many for {kind.upper()}, whose longest "
            f"side is {limit}; write png or tiff"
        )
    return kind


def write_image(path: str | os.PathLike[str], image: Image, *, format: str | None = None) -> None:
    """Write an image file, in the format of the path's suffix or the given one.

    16-bit pixels stay 16-bit in PNG and TIFF and are rounded to 8 bits (v / 257) for the others.
    PNG, TIFF (LZW) and BMP are lossless; JPEG is written at quality 95 in 4:4:4.  WebP is lossless
    if `Image.lossless`, and otherwise written at quality 95, with half the chroma resolution.
    WebP turns gray into RGB, and BMP gray with alpha into RGB with alpha.  The colour profile and,
    except in WebP, the resolution are kept.  BMP is written without a profile, WebP cannot hold
    that of a gray image, and only PNG holds `Image.png_colour`: an ImageWarning names what is lost.

    The file appears whole or not at all: it is written under another name in the same folder,
    flushed to the disk, and renamed.  If this fails, an existing file is left unchanged.  The
    file's permissions follow the umask; a symbolic link is followed.

    Raises ImageError for what check_output refuses, a folder that does not exist, and a path that
    exists but is not a regular file; OSError, with the path in its message, if the system cannot
    write (disk full, no permission, ...).
    """
    name = os.fspath(path)
    height, width, channels = image.pixels.shape
    kind = check_output(name, width, height, channels, format=format)
    target = os.path.realpath(name)
    if not os.path.isdir(os.path.dirname(target)):
        raise ImageError(f"{name}: the folder to write into does not exist")
    if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
        raise ImageError(f"{name}: is not a regular file and cannot be replaced by an image")
    for loss in _losses(image, kind):
        warn(f"{name}: {loss}")
    try:
        data = _encode_bmp(image) if kind == "bmp" else _encode_vips(image, kind)
    except pyvips.Error as error:
        reason = " ".join(str(error).split())
        raise ImageError(f"{name}: cannot be encoded as {kind.upper()} ({reason})") from None
    try:
        with atomic_write(target) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from None


def _losses(image: Image, kind: str) -> list[str]:
    """What a format cannot hold of how an image is shown, as sentences."""
    losses = []
    if image.icc_profile is not None:
        if kind == "bmp":
            losses.append("BMP is written without the colour profile, which is lost")
        if _is_gray_webp(image, kind):
            losses.append("WebP turns gray into RGB; the colour profile of gray is lost")
    if image.png_colour and kind != "png":
        losses.append(
            f"{kind.upper()} cannot hold the PNG colour chunks {chunk_names(image.png_colour)}; "
            f"they are lost and the colours will look different; write png to keep them"
        )
    return losses


def _is_gray_webp(image: Image, kind: str) -> bool:
    return kind == "webp" and image.pixels.shape[2] <= 2


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) uint8 or uint16 -> uint8; 65535 becomes 255 and halves cannot occur."""
    if pixels.dtype == np.uint8:
        return pixels
    table = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    return table[pixels]


def _encode_vips(image: Image, kind: str) -> bytes:
    pixels = image.pixels if kind in ("png", "tiff") else _eight_bit(image.pixels)
    height, width, channels = pixels.shape
    deep = pixels.dtype == np.uint16
    space = _SPACES["gray" if channels <= 2 else "rgb"][int(deep)]
    xdpi, ydpi = image.dpi or (72.0, 72.0)
    # new_from_memory shares the array's memory; copy() only sets the header.
    vips = pyvips.Image.new_from_memory(
        pixels.data, width, height, channels, "ushort" if deep else "uchar"
    ).copy(interpretation=space, xres=xdpi / 25.4, yres=ydpi / 25.4)
    if image.icc_profile is not None and not _is_gray_webp(image, kind):
        vips.set_type(pyvips.GValue.blob_type, "icc-profile-data", image.icc_profile)
    options = dict(_SAVE_OPTIONS[kind])
    if kind == "tiff":
        options["bigtiff"] = pixels.nbytes > _PLAIN_TIFF_BYTES
    if kind == "webp" and image.lossless:
        options = {"lossless": True}
    data = bytes(getattr(vips, f"{kind}save_buffer")(keep="icc", **options))
    if kind == "jpeg":
        return data[:2] + _jfif(xdpi, ydpi) + data[2:]
    return with_colour_chunks(data, image.png_colour) if kind == "png" else data


def _jfif(xdpi: float, ydpi: float) -> bytes:
    """The first segment of a JPEG file, with the resolution; libvips writes it only into EXIF."""
    density = (min(max(round(dpi), 1), 65535) for dpi in (xdpi, ydpi))
    return struct.pack(">2sH5sHBHHBB", b"\xff\xe0", 16, b"JFIF\0", 0x0102, 1, *density, 0, 0)


def _encode_bmp(image: Image) -> bytes:
    pixels = _eight_bit(image.pixels)
    dpi = image.dpi or (72.0, 72.0)
    if pixels.shape[2] in (2, 4):
        return _encode_bmp_alpha(pixels, dpi)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(
        file, "BMP", dpi=dpi
    )
    return file.getvalue()


def _encode_bmp_alpha(pixels: np.ndarray, dpi: tuple[float, float]) -> bytes:
    """Rows of B, G, R, A from the bottom up behind a BITMAPV4HEADER, which Pillow cannot write."""
    height, width, channels = pixels.shape
    data = pixels[::-1, :, [2, 1, 0, 3] if channels == 4 else [0, 0, 0, 1]].tobytes()
    per_metre = (round(x / 0.0254) for x in dpi)
    masks = (0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)  # of R, G, B and A; compression 3
    header = struct.pack(
        "<IiiHHIIiiII4I4s48x",
        108, width, height, 1, 32, 3, len(data), *per_metre, 0, 0, *masks, b"BGRs",
    )  # fmt: skip
    start = 14 + len(header)
    return struct.pack("<2sI4xI", b"BM", start + len(data), start) + header + data
