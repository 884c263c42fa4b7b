"""PSNR and SSIM of a network over a folder of images, by the protocol of the NTIRE challenge."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image

from espan.batch import name_results
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
    """An image that could not be scored, and the reason."""

    name: str
    error: str


@dataclass(frozen=True)
class Pair:
    """An HR image and its LR image, or None to compute LR from HR."""

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
    overwrite: bool = False,
    used: Iterable[Path] = (),
) -> Iterator[Score | Failure]:
    """Score each pair.  An image that cannot be scored is a `Failure` and does not stop the others.

    HR is cropped to a multiple of the scale.  Where LR is not given, it is made from HR as MATLAB's
    imresize does.  Gray becomes RGB.  The result is rounded to uint8 and compared with HR after
    `scale` pixels are cut off on each side.  Pairs whose file headers show that their sizes do not
    match come first.

    Args:
        pairs: from `find_pairs`.
        upscaler: the network.
        y_channel: compare the luma instead of RGB.
        save: a folder for the results, as PNG with the colour space of LR or, if that is not given,
            of HR; it is created if it does not exist.  "a.png" and "a.bmp" become "a.png" and
            "a_bmp.png".
        overwrite: replace results that exist.
        used: files that must not be replaced, beside those of `pairs`.

    Raises:
        EspanError: a result exists, or would replace an image of `pairs` or a file in `used`.
            Nothing has been written then.
    """
    pairs = list(pairs)
    images = [(pair.hr, Path(pair.hr.name)) for pair in pairs]
    results = [job.target for job in name_results(images, save or Path(), format="png")]
    if save is not None:
        files = [path for pair in pairs for path in (pair.hr, pair.lr) if path is not None]
        refuse_inputs(results, [*files, *used])
        if not overwrite and (existing := [path for path in results if path.is_file()]):
            raise EspanError(
                f"{existing[0]} exists"
                + (f", and {len(existing) - 1} more results" if len(existing) > 1 else "")
                + "; --overwrite replaces them"
            )
        save.mkdir(parents=True, exist_ok=True)
    named = list(zip(pairs, results, strict=True))
    for pair, result in sorted(named, key=lambda item: _sizes_fit(item[0], upscaler.scale)):
        name, target = result.stem, None if save is None else result
        try:
            yield _score(name, pair, upscaler, y_channel=y_channel, result=target)
        except EspanError as error:
            text = str(error)
            if not any(str(path) in text for path in (pair.hr, pair.lr)):
                text = f"{pair.hr}: {text}"
            yield Failure(name, text)
        except OSError as error:
            yield Failure(name, f"{error.filename or pair.hr}: {error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            yield Failure(name, f"{pair.hr}: not enough memory")


def score(
    name: str, sr: np.ndarray, hr: np.ndarray, *, border: int, y_channel: bool = False
) -> Score:
    """Compare a result with HR, both (H, W, 3) uint8, without `border` pixels on each side."""
    return Score(
        name=name,
        # First, as its error names the size that both need.
        ssim=ssim(sr, hr, border=border, y_channel=y_channel),
        psnr=psnr(sr, hr, border=border, y_channel=y_channel),
    )


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8; gray becomes RGB."""
    return _read(path).pixels


def _read(path: Path) -> Image:
    image = read_image(path)
    pixels = image.pixels
    if pixels.dtype != np.uint8:
        raise ImageError(f"{path} has 16 bits per channel; the protocol compares 8-bit images")
    if pixels.shape[2] in (2, 4):
        raise ImageError(f"{path} has an alpha channel; RGB or gray is expected")
    if pixels.shape[2] == 1:  # whose profile is not for RGB
        return Image(np.repeat(pixels, 3, axis=2), png_colour=image.png_colour)
    return image


def _score(
    name: str, pair: Pair, upscaler: Upscaler, *, y_channel: bool, result: Path | None
) -> Score:
    scale = upscaler.scale
    source = _read(pair.hr)
    hr = modcrop(source.pixels, scale)
    if pair.lr is None:
        lr = imresize(hr, Fraction(1, scale))
    else:
        source = _read(pair.lr)
        lr = source.pixels
    expected = (hr.shape[0] // scale, hr.shape[1] // scale)
    if lr.shape[:2] != expected:
        raise ImageError(
            f"{pair.lr} is {lr.shape[1]}x{lr.shape[0]}; for {pair.hr.name} at x{scale} "
            f"{expected[1]}x{expected[0]} is expected"
        )
    sr = upscaler(lr)
    try:
        scored = score(name, sr, hr, border=scale, y_channel=y_channel)
    except EspanError as error:
        raise ImageError(f"{pair.hr}: {error}") from error
    if result is not None:
        write_image(result, Image(sr, source.icc_profile, png_colour=source.png_colour))
    return scored


def _sizes_fit(pair: Pair, scale: int) -> bool:
    """Whether the sizes in the file headers match; True if unknown, as reading reports why."""
    if pair.lr is None:
        return True
    try:
        with warnings.catch_warnings():  # of large images
            warnings.simplefilter("ignore")
            with PIL.Image.open(pair.hr) as hr, PIL.Image.open(pair.lr) as lr:
                # Sorted, because an EXIF orientation may swap the sides.
                return sorted(lr.size) == sorted(side // scale for side in hr.size)
    except Exception:  # Pillow's parsers raise exceptions of many types on bad data.
        return True


def _images(folder: Path) -> dict[Path, str]:
    images, unreadable = find_images(folder, subfolders=False)
    if unreadable:
        raise EspanError(f"{folder} cannot be read ({unreadable[0].strerror})")
    return images
