"""Photograph files: finding them, and decoding them to the 8-bit RGB that training uses."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espan.errors import EspanError, ImageError
from espan.imaging import find_images, read_image


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True, eq=False)
class Decoded:
    """A photograph file: its name, (H, W, 3) uint8 pixels, and their hash (`sha256_of`)."""

    path: Path
    name: str
    pixels: np.ndarray
    sha256: str


def find_photographs(folders: Sequence[Path]) -> dict[Path, str]:
    """The image files in the folders and their subfolders, sorted within each given folder.

    Returns path -> name: the path below its folder, with "/" as separator.
    Raises EspanError for a folder that does not exist, holds no image files or cannot be read.
    """
    found: dict[Path, str] = {}
    for folder in folders:
        images, unreadable = find_images(folder)
        if unreadable:
            raise EspanError(
                f"{unreadable[0].filename} cannot be read ({unreadable[0].strerror}), and its "
                "images would be left out; make it readable, or move it elsewhere"
            )
        for path, name in images.items():
            found.setdefault(path, name)
    return found


def decode_photographs(
    names: Mapping[Path, str], usable: Callable[[str, int, int], str | None]
) -> Iterator[Decoded | Skipped]:
    """Decode files on up to 16 cores, in order, as many images ahead as there are cores.

    16-bit samples are rounded to 8 bits, gray becomes RGB.

    Args:
        names: path -> name, from `find_photographs`.
        usable: returns what is wrong with (path, height, width), or None.

    Yields each photograph, or `Skipped` if it is damaged, has an alpha channel or is unusable.
    """
    # A core decodes 120 MB (PNG) to 160 MB (JPEG) of pixels per second; 16 keep a disk busy.
    ahead = min(16, os.cpu_count() or 1)

    def read(path: Path) -> Decoded | Skipped:
        try:
            pixels = read_photograph(path)
        except ImageError as error:
            return Skipped(path, str(error))
        if reason := usable(str(path), *pixels.shape[:2]):
            return Skipped(path, reason)
        return Decoded(path, names[path], pixels, sha256_of(pixels))

    with ThreadPoolExecutor(ahead) as pool:
        yield from _in_order(pool, read, names, ahead)


def sha256_of(pixels: np.ndarray) -> str:
    """The hash of contiguous pixels, in hexadecimal: 0.7 s for a gigabyte."""
    return hashlib.sha256(pixels.data).hexdigest()


def too_small(path: str, height: int, width: int, smallest: int, why: str) -> str | None:
    """What is wrong with an image that has fewer than `smallest` pixels on a side, or None."""
    if min(height, width) >= smallest:
        return None
    return f"{path}: {width} x {height} pixels are too few; both sides need {smallest} {why}"


def _in_order(
    pool: ThreadPoolExecutor,
    read: Callable[[Path], Decoded | Skipped],
    paths: Iterable[Path],
    ahead: int,
) -> Iterator[Decoded | Skipped]:
    """Like pool.map, but with at most `ahead` results in memory, because they are whole images."""
    waiting: deque[Future[Decoded | Skipped]] = deque()
    for path in paths:
        waiting.append(pool.submit(read, path))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_photograph(path: Path) -> np.ndarray:
    """(H, W, 3) uint8: 16-bit samples are rounded, gray becomes RGB.  Raises ImageError."""
    pixels = read_image(path).pixels
    if pixels.shape[2] in (2, 4):
        raise ImageError(f"{path}: has an alpha channel; RGB or gray is expected")
    if pixels.dtype == np.uint16:
        pixels = ((pixels + np.uint32(128)) // 257).astype(np.uint8)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
