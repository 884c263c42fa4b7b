"""Photographs for training, decoded once: HR, and the LR that MATLAB's imresize makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from espan.errors import EspanError, ImageError
from espan.imaging import imresize, is_image_path, modcrop, read_image


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph and what it shall be restored from.

    hr  (s*h, s*w, 3) uint8, cropped at the bottom and the right to a multiple of the scale s.
    lr  (h, w, 3) uint8, made from the whole of hr, so that only its border sees a border.
    """

    name: str
    hr: np.ndarray
    lr: np.ndarray


@dataclass(frozen=True)
class Skipped:
    """A file that is not used, and why."""

    path: Path
    reason: str


def find_photographs(folders: Sequence[Path]) -> list[Path]:
    """The image files in the folders and all folders below, sorted within each folder given.

    Raises EspanError for a folder that does not exist, and if there are no image files at all.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise EspanError(f"{folder} is not a folder; a folder of photographs is expected")
        found += sorted(p for p in folder.rglob("*") if p.is_file() and is_image_path(p))
    if not found:
        raise EspanError(f"no images in {', '.join(map(str, folders))} or the folders below")
    return list(dict.fromkeys(found))


def read_photographs(
    paths: Sequence[Path],
    *,
    scale: int,
    smallest: int,
    each: Callable[[], None] = lambda: None,
) -> tuple[list[Photograph], list[Skipped]]:
    """Decode photographs and make their LR images, on all cores.

    They stay in memory as uint8, 3.2 bytes per HR pixel at x4: 300 megapixels take 1 GB.  16-bit
    samples are rounded to 8 bits, gray becomes RGB.

    Args:
        paths: image files.
        scale: HR is this many times LR's size.
        smallest: LR pixels that both sides must have.
        each: called after each file.

    Returns:
        The photographs in the order of the paths, and the files that are damaged, have an alpha
        channel or are too small.

    Raises EspanError if none is left.
    """

    def read(path: Path) -> Photograph | Skipped:
        try:
            return _read(path, scale, smallest)
        except ImageError as error:
            return Skipped(path, str(error))

    photographs: list[Photograph] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for result in pool.map(read, paths):
            (photographs if isinstance(result, Photograph) else skipped).append(result)  # type: ignore[arg-type]
            each()
    if not photographs:
        raise EspanError(f"none of {len(paths)} images can be used: {skipped[0].reason}")
    return photographs, skipped


def _read(path: Path, scale: int, smallest: int) -> Photograph:
    pixels = read_image(path).pixels
    if min(pixels.shape[:2]) < smallest * scale:
        raise ImageError(
            f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels are too few; both sides need "
            f"{smallest * scale} for a patch of {smallest} at x{scale}"
        )
    if pixels.shape[2] in (2, 4):
        raise ImageError(f"{path}: has an alpha channel; RGB or gray is expected")
    if pixels.dtype == np.uint16:
        pixels = ((pixels + np.uint32(128)) // 257).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    hr = np.ascontiguousarray(modcrop(pixels, scale))
    return Photograph(path.name, hr, imresize(hr, Fraction(1, scale)))
