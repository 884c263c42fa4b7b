"""What a network under training is measured on, and measuring it with the fused network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from espan.errors import EspanError
from espan.evaluation.evaluate import Score, find_pairs, read_rgb, score
from espan.imaging import imresize, modcrop
from espan.models import Network
from espan.upscaling import RangeWarning, Upscaler

HELD_OUT_CROP = 512  # HR pixels


@dataclass(frozen=True)
class Sample:
    """An image to measure on.

    Attributes:
        name: of the image.
        read: gives HR (H, W, 3) and, if there is one, the LR image (h, w, 3), both uint8.
    """

    name: str
    read: Callable[[], tuple[np.ndarray, np.ndarray | None]]

    def pair(self, scale: int) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR, cropped to a multiple of the scale; LR as MATLAB makes it if none is given."""
        hr, lr = self.read()
        hr = modcrop(hr, scale)
        if lr is None:
            lr = imresize(hr, Fraction(1, scale))
        expected = (hr.shape[0] // scale, hr.shape[1] // scale)
        if lr.shape[:2] != expected:
            raise EspanError(
                f"validation: the LR image of {self.name} is {lr.shape[1]}x{lr.shape[0]}; at "
                f"x{scale} {expected[1]}x{expected[0]} is expected"
            )
        return lr, hr


def from_folder(hr: Path, lr: Path | None) -> list[Sample]:
    """The whole images of a folder, read anew each time; LR by the same names in folder `lr`."""

    def sample(hr: Path, lr: Path | None) -> Sample:
        return Sample(hr.stem, lambda: (read_rgb(hr), None if lr is None else read_rgb(lr)))

    return [sample(pair.hr, pair.lr) for pair in find_pairs(hr, lr)]


def from_held_out(name: str, hr: np.ndarray) -> Sample:
    """The centre of a photograph that is not trained on, 512 x 512 or less."""
    y, x = (max(0, n - HELD_OUT_CROP) // 2 for n in hr.shape[:2])
    centre = hr[y : y + HELD_OUT_CROP, x : x + HELD_OUT_CROP]
    return Sample(name, lambda: (centre, None))


def measure(network: Network, samples: Sequence[Sample], *, device: torch.device) -> list[Score]:
    """PSNR in dB and SSIM of a plain network over the samples, run by `espan.fused`."""
    upscaler = Upscaler(network, device=device)
    scores = []
    for sample in samples:
        lr, hr = sample.pair(network.scale)
        with warnings.catch_warnings():
            # A network at the start of its training may well leave the range.
            warnings.simplefilter("ignore", RangeWarning)
            sr = upscaler(torch.from_numpy(lr)).numpy()
        scores.append(score(sample.name, sr, hr, border=network.scale))
    return scores
