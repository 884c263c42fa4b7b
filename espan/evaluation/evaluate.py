"""PSNR and SSIM of a network over a folder of images, by the protocol of the challenge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from espan.errors import EspanError, ImageError, out_of_memory
from espan.evaluation.metrics import psnr, ssim
from espan.files import refuse_inputs
from espan.imaging import (
    Image,
    find_images,
    imresize,
    modcrop,
    pair_lr,
    read_image,
    write_image,
)
from espan.upscaling import Upscaler


@dataclass(frozen=True)
class Score:
    """PSNR in dB and SSIM of one image."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Failure:
    """An image without a score, and why."""

    name: str
    error: str


@dataclass(frozen=True)
class Pair:
    """An HR image and its LR image (None: to be made from it)."""

    hr: Path
    lr: Path | None


def find_pairs(hr: Path, lr: Path | None, scales: Iterable[int]) -> list[Pair]:
    """The images of folder `hr`, each with its LR image in folder `lr`, without subfolders.

    Raises EspanError for a folder that does not exist, holds no images or cannot be read, and as
    `pair_lr`.
    """
    found = _images(hr)
    if lr is None:
        return [Pair(path, None) for path in found]
    lr_files = pair_lr(found.values(), _images(lr), scales)
    return [Pair(path, lr_files[name]) for path, name in found.items()]


def evaluate(
    pairs: Iterable[Pair],
    upscaler: Upscaler,
    *,
    y_channel: bool = False,
    save: Path | None = None,
) -> Iterator[Score | Failure]:
    """Score each pair in turn.  An image that cannot be scored is a `Failure`; the others go on.

    HR is cropped to a multiple of the scale, LR made from it as MATLAB's imresize does where none
    is given; gray becomes RGB; the result is rounded to uint8 and compared with HR after `scale`
    pixels are cut off each side.  `save` is a folder for the results, as PNG; it is created if it
    does not exist.

    Raises:
        EspanError: before anything is written, a result that would replace an image of `pairs` or
            another result.
    """
    pairs = list(pairs)
    if save is not None:
        _check_results(pairs, save)
        save.mkdir(parents=True, exist_ok=True)
    for pair in pairs:
        result = None if save is None else _result(pair, save)
        try:
            yield _score(pair, upscaler, y_channel=y_channel, result=result)
        except EspanError as error:
            yield Failure(pair.hr.stem, str(error))
        except OSError as error:
            yield Failure(pair.hr.stem, f"{error.filename or pair.hr}: {error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            yield Failure(pair.hr.stem, f"{pair.hr}: not enough memory")


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


def _score(pair: Pair, upscaler: Upscaler, *, y_channel: bool, result: Path | None) -> Score:
    scale = upscaler.scale
    hr = modcrop(read_rgb(pair.hr), scale)
    lr = imresize(hr, Fraction(1, scale)) if pair.lr is None else read_rgb(pair.lr)
    expected = (hr.shape[0] // scale, hr.shape[1] // scale)
    if lr.shape[:2] != expected:
        raise ImageError(
            f"{pair.lr} is {lr.shape[1]}x{lr.shape[0]}; for {pair.hr.name} at x{scale} "
            f"{expected[1]}x{expected[0]} is expected"
        )
    sr = upscaler(lr)
    try:
        scored = score(pair.hr.stem, sr, hr, border=scale, y_channel=y_channel)
    except EspanError as error:
        raise ImageError(f"{pair.hr}: {error}") from error
    if result is not None:
        write_image(result, Image(sr))
    return scored


def _check_results(pairs: Iterable[Pair], save: Path) -> None:
    results: dict[Path, Path] = {}
    for pair in pairs:
        result = _result(pair, save)
        if result in results:
            raise EspanError(f"{results[result]} and {pair.hr} would both be saved as {result}")
        results[result] = pair.hr
    refuse_inputs(
        results, (path for pair in pairs for path in (pair.hr, pair.lr) if path is not None)
    )


def _result(pair: Pair, folder: Path) -> Path:
    return folder / f"{pair.hr.stem}.png"


def _images(folder: Path) -> dict[Path, str]:
    images, unreadable = find_images(folder, subfolders=False)
    if unreadable:
        raise EspanError(f"{folder} cannot be read ({unreadable[0].strerror})")
    return images
