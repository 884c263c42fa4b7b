"""The images to validate on, and what a network scores on them."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from espan.data import TrainingImage, some_names
from espan.data.degrade import degraded
from espan.data.degrade_table import DegradeTable
from espan.data.photographs import sha256_of
from espan.errors import EspanError, RangeWarning
from espan.evaluation.evaluate import Score, find_pairs, read_rgb, score
from espan.evaluation.metrics import SSIM_WINDOW
from espan.imaging import imresize, modcrop
from espan.models import Network
from espan.upscaling import Upscaler

HELD_OUT_CROP = 512  # HR pixels
DEGRADED_SEED = 0


@dataclass(frozen=True)
class ValidationImage:
    """An image to validate on, read from disk each time it is used.

    Attributes:
        hr: a file, or a held-out photograph, of which the central 512 x 512 pixels are used.
        lr: its LR image for each scale: a file, or the photograph with its given LR pixels; empty:
            LR is made from HR.
        index: position among the images, the index of its degradation.
        sha256: of the HR pixels and, where LR is given, of its pixels; set by `checked`.
    """

    hr: Path | TrainingImage
    lr: Mapping[int, Path | TrainingImage] = field(default_factory=dict)
    index: int = 0
    sha256: str = ""

    @property
    def hr_sha256(self) -> str:
        """Of the HR pixels."""
        return self.sha256.partition("+")[0]

    @property
    def name(self) -> str:
        return str(self.hr) if isinstance(self.hr, Path) else self.hr.name

    def read_hr(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        if isinstance(self.hr, Path):
            return read_rgb(self.hr)
        y, x = self._corner(self.hr)
        return self.hr.hr[y : y + HELD_OUT_CROP, x : x + HELD_OUT_CROP]

    def read_lr(self, scale: int) -> np.ndarray | None:
        """The given LR image, (h, w, 3) uint8."""
        if not self.lr:
            return None
        given = self.lr[scale]
        if isinstance(given, Path):
            return read_rgb(given)
        y, x = (n // scale for n in self._corner(given))
        size = HELD_OUT_CROP // scale
        return given.lr[y : y + size, x : x + size]

    def _corner(self, image: TrainingImage) -> tuple[int, int]:
        """Where the central pixels of a photograph begin: where pixels of its LR images begin."""
        step = math.lcm(*self.lr)
        y, x = (max(0, n - HELD_OUT_CROP) // 2 // step * step for n in image.hr_size)
        return y, x

    def pair(
        self, scale: int, degrade: DegradeTable | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR, cropped to a multiple of the scale.

        LR that is not given is degraded, always in the same way, or made as MATLAB's imresize does.
        """
        hr, lr = self.read_hr(), self.read_lr(scale)
        self.check(hr, lr, scale)
        hr = modcrop(hr, scale)
        if lr is None and degrade is not None:
            lr = degraded(hr, degrade, scale, seed=DEGRADED_SEED, index=self.index)
        return imresize(hr, Fraction(1, scale)) if lr is None else lr, hr

    def check(self, hr: np.ndarray, lr: np.ndarray | None, scale: int) -> None:
        """Raise EspanError if the images that were read cannot be used at this scale."""
        height, width = (n // scale for n in hr.shape[:2])
        smallest = SSIM_WINDOW + 2 * scale  # SSIM's window, and the border that is cut off
        if scale * min(height, width) < smallest:
            raise EspanError(
                f"validation image {self.name} has {hr.shape[1]}x{hr.shape[0]} pixels; x{scale} "
                f"needs {math.ceil(smallest / scale) * scale} on both sides.  Validate on larger "
                "images"
            )
        if lr is not None and lr.shape[:2] != (height, width):
            raise EspanError(
                f"validation image {self.lr[scale]} is {lr.shape[1]}x{lr.shape[0]}; x{scale} needs "
                f"{width}x{height}, the size of {self.name} divided by {scale}.  Without "
                "--validate-lr, LR images are made from HR at the scale of each stage"
            )


def from_folder(hr: Path, lr: Mapping[int, Path]) -> list[ValidationImage]:
    """The images of a folder, each with its LR image in the folder `lr` of each scale, if any."""
    if not lr:
        pairs = find_pairs(hr, None, [])
        return [ValidationImage(pair.hr, index=i) for i, pair in enumerate(pairs)]
    files: dict[Path, dict[int, Path]] = {}
    for scale, folder in lr.items():
        for pair in find_pairs(hr, folder, [scale]):
            assert pair.lr is not None
            files.setdefault(pair.hr, {})[scale] = pair.lr
    return [ValidationImage(path, found) for path, found in files.items()]


def from_photographs(
    chosen: Sequence[TrainingImage], given: Mapping[int, Sequence[TrainingImage]]
) -> list[ValidationImage]:
    """Photographs to validate on, with the LR images of each scale where they are given."""
    by_name = {scale: {image.name: image for image in many} for scale, many in given.items()}
    for scale, images in by_name.items():
        if missing := [image.name for image in chosen if image.name not in images]:
            raise EspanError(
                f"to validate on {some_names(missing)}, their LR images at x{scale} are needed, "
                "but they could not be used; hold out other images"
            )
    return [
        ValidationImage(image, {scale: images[image.name] for scale, images in by_name.items()}, i)
        for i, image in enumerate(chosen)
    ]


def checked(
    validation: Sequence[ValidationImage], scales: Mapping[int, str]
) -> list[ValidationImage]:
    """The images with their hashes.

    Raises EspanError if one cannot be used in a stage, given the stage's name by scale.
    """
    found = []
    for image in validation:
        hr = image.read_hr()
        hashes = [sha256_of(hr) if isinstance(image.hr, Path) else image.hr.hr_sha256]
        for scale, stage in scales.items():
            try:
                lr = image.read_lr(scale)
                image.check(hr, lr, scale)
            except EspanError as error:
                raise EspanError(f"stage {stage}: {error}") from None
            hashes += [] if lr is None else [sha256_of(lr)]
        found.append(dataclasses.replace(image, sha256="+".join(hashes)))
    return found


def validate(
    network: Network,
    images: Sequence[ValidationImage],
    *,
    degrade: DegradeTable | None = None,
    device: torch.device,
) -> list[Score]:
    """PSNR in dB and SSIM of a plain network, run by `espan.fused`."""
    upscaler = Upscaler(network, device=device)
    scores = []
    for image in images:
        lr, hr = image.pair(network.scale, degrade)
        with warnings.catch_warnings():
            # Expected of a network at the start of its training.
            warnings.simplefilter("ignore", RangeWarning)
            sr = upscaler(lr)
        scores.append(score(image.name, sr, hr, border=network.scale))
    return scores
