"""PSNR and SSIM of a network over a folder of images, by the protocol of the challenge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from espan.errors import EspanError, ImageError
from espan.evaluation.metrics import psnr, ssim
from espan.imaging import Image, imresize, is_image_path, modcrop, read_image, write_image
from espan.upscaling import Upscaler


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM of one image."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Pair:
    """An HR image and its LR image (None: to be made from it)."""

    hr: Path
    lr: Path | None


def find_pairs(hr: Path, lr: Path | None) -> list[Pair]:
    """The images of folder `hr`, each with the one of the same stem in folder `lr`.

    Raises:
        EspanError: a folder that is missing or holds no images, or an HR image without its LR one.
    """
    found = _images(hr)
    if lr is None:
        return [Pair(path, None) for path in found]
    by_stem = {path.stem: path for path in _images(lr)}
    without = [path.name for path in found if path.stem not in by_stem]
    if without:
        raise EspanError(
            f"{lr} lacks the LR images of {', '.join(without[:4])}"
            f"{' and more' if len(without) > 4 else ''}; the same name without ending is expected"
        )
    return [Pair(path, by_stem[path.stem]) for path in found]


def evaluate(
    pairs: Iterable[Pair],
    upscaler: Upscaler,
    *,
    y_channel: bool = False,
    save: Path | None = None,
) -> Iterator[Score]:
    """Score each pair in turn.

    HR is cropped to a multiple of the scale, LR made from it as MATLAB's imresize does where none
    is given; gray becomes RGB; the result is rounded to uint8 and compared with HR after `scale`
    pixels are cut off each side.  `save` is a folder for the results, as PNG.

    Raises:
        ImageError: an image that cannot be read, or an LR image that is not HR's size / scale.
    """
    scale = upscaler.scale
    for pair in pairs:
        hr = modcrop(read_rgb(pair.hr), scale)
        lr = imresize(hr, Fraction(1, scale)) if pair.lr is None else read_rgb(pair.lr)
        expected = (hr.shape[0] // scale, hr.shape[1] // scale)
        if lr.shape[:2] != expected:
            raise ImageError(
                f"{pair.lr} is {lr.shape[1]}x{lr.shape[0]}; for {pair.hr.name} at x{scale} "
                f"{expected[1]}x{expected[0]} is expected"
            )
        sr = upscaler(lr)
        if save is not None:
            write_image(save / f"{pair.hr.stem}.png", Image(sr))
        yield score(pair.hr.stem, sr, hr, border=scale, y_channel=y_channel)


def score(
    name: str, sr: np.ndarray, hr: np.ndarray, *, border: int, y_channel: bool = False
) -> Score:
    """Compare a result with HR, both (H, W, 3) uint8, without `border` pixels at each side."""
    return Score(
        name=name,
        psnr=psnr(sr, hr, border=border, y_channel=y_channel),
        ssim=ssim(sr, hr, border=border, y_channel=y_channel),
    )


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8; gray becomes RGB."""
    pixels = read_image(path).pixels
    if pixels.dtype != np.uint8:
        raise ImageError(f"{path} has 16 bits per channel; the protocol compares 8-bit images")
    if pixels.shape[2] in (2, 4):
        raise ImageError(f"{path} has an alpha channel; RGB or gray is expected")
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise EspanError(f"{folder} is not a folder")
    found = sorted(p for p in folder.iterdir() if p.is_file() and is_image_path(p))
    if not found:
        raise EspanError(f"{folder} holds no images")
    return found
