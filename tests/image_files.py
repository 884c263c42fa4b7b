"""Image files for tests, made by hand or by Pillow, so that no test relies on espan's writer."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms

from espan.imaging import Image, read_image

RGB_PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]


def photo(height: int, width: int, channels: int = 3, top: int = 255) -> np.ndarray:
    """Smooth pixels, 0 to top, that differ in every row, column and channel."""
    y, x, c = np.ogrid[:height, :width, :channels]
    wave = np.sin(y / 9 + c) + np.cos(x / 7 - c) + (x + 2 * y) / (width + 2 * height)
    wave = (wave - wave.min()) / (wave.max() - wave.min())
    return np.rint(wave * top).astype(np.uint8 if top == 255 else np.uint16)


def ramp(channels: int, dtype: type) -> np.ndarray:
    """All values of the type in every channel, each in another order."""
    count = int(np.iinfo(dtype).max) + 1
    values = np.arange(count)
    planes = [values, values[::-1], (values * 17 + 5) % count, (values * 101) % count]
    return np.stack(planes[:channels], -1).reshape(-1, 128, channels).astype(dtype)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file from rows that begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def tiff(pixels: np.ndarray, tags: dict[int, list[int]]) -> bytes:
    """An uncompressed little-endian TIFF file of one strip; tags are added as 16-bit numbers."""
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [pixels.itemsize * 8] * channels, 259: [1],
        262: [2 if channels >= 3 else 1], 277: [channels], 278: [height],
    }  # fmt: skip
    entries |= tags
    tail = b""
    start = 8 + len(data) + 2 + 12 * (len(entries) + 2) + 4
    table = []
    for tag, values in entries.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            where = struct.pack("<I", start + len(tail))
            tail += packed
        else:
            where = packed.ljust(4, b"\0")
        table.append((tag, struct.pack("<HHI", tag, 3, len(values)) + where))
    for tag, value in ((273, 8), (279, len(data))):
        table.append((tag, struct.pack("<HHII", tag, 4, 1, value)))
    fields = b"".join(entry for _, entry in sorted(table))
    directory = struct.pack("<H", len(table)) + fields + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + tail


def by_pillow(image: PIL.Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read_bytes(folder: Path, data: bytes, name: str = "image.bin") -> Image:
    path = folder / name
    path.write_bytes(data)
    return read_image(path)


def sample(format: str, size: tuple[int, int] = (60, 80)) -> bytes:
    image = PIL.Image.fromarray(photo(*size))
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    return by_pillow(image.quantize(64) if format == "GIF" else image, format, **options)
