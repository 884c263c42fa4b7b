"""Aligned HR and LR crops.  Sample i of a run is the same on any machine and in any order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from espan.data.photographs import Photograph


class Crops:
    """Crops of photographs, each a pure function of the seed and its index.

    Every photograph is equally likely, however large: those of few pixels have the more detail in
    a crop, and training goes twice as fast as with every pixel equally likely (150 photographs of
    2 megapixels, 400 of 0.15: 25.70 dB after 250 steps against 25.71 dB after 500).  Then every
    position in it is, and each of the 8 symmetries of a square.

    Args:
        photographs: of one scale, each with LR sides of `patch` or more.
        patch: side of the LR crops.
        seed: 0 or more.
    """

    def __init__(self, photographs: Sequence[Photograph], *, patch: int, seed: int) -> None:
        self.photographs = photographs
        self.patch = patch
        self.seed = seed
        self.scale = photographs[0].hr.shape[0] // photographs[0].lr.shape[0]

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """LR (p, p, 3) and HR (s*p, s*p, 3), uint8: sample `index` (0 or more) of the run."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        photograph = self.photographs[int(random.integers(len(self.photographs)))]
        height, width = photograph.lr.shape[:2]
        y = int(random.integers(height - self.patch + 1))
        x = int(random.integers(width - self.patch + 1))
        symmetry = int(random.integers(8))
        p, s = self.patch, self.scale
        return (
            _turned(photograph.lr[y : y + p, x : x + p], symmetry),
            _turned(photograph.hr[s * y : s * (y + p), s * x : s * (x + p)], symmetry),
        )

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Samples first ... first + count - 1: LR (N, 3, p, p) and HR (N, 3, s*p, s*p).

        fp32 in 0-1, channels last in memory (which convolutions in bf16 on the CPU run fastest on).
        """
        lr, hr = zip(*(self.sample(first + i) for i in range(count)), strict=True)
        return _tensor(np.stack(lr)), _tensor(np.stack(hr))


def _turned(crop: np.ndarray, symmetry: int) -> np.ndarray:
    """Symmetry 0-7 of (p, p, 3): bit 0 mirrors up-down, 1 left-right, 2 the diagonal."""
    if symmetry & 1:
        crop = crop[::-1]
    if symmetry & 2:
        crop = crop[:, ::-1]
    return crop.swapaxes(0, 1) if symmetry & 4 else crop


def _tensor(pixels: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, H, W) fp32 in 0-1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
