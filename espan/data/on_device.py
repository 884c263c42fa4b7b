"""Crops whose downscaling, turning and conversion are done on the device that trains.

The host copies uint8 pixels, 125 kB for a patch of 48 at x4, and no more.  The results are those of
`Crops.batch`, bit for bit: the same `downscale` runs on tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from espan.data.crops import Crops
from espan.data.downscale import context, downscale, reach, weights


@dataclass(frozen=True)
class Cuttings:
    """What the host gives the device for N crops.

    Attributes:
        scale: HR pixels per LR pixel.
        pixels: (N, P, P, 3) uint8: HR, with the context that LR is made of if it is not given.
        lr: (N, p, p, 3) uint8 where LR is given.
        rows: (N, p, taps), of `weights`, where it is not.
        columns: (N, p, taps).
        symmetry: (N,) uint8, of `turned`.
    """

    scale: int
    pixels: Tensor
    symmetry: Tensor
    lr: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None

    def to(self, device: torch.device) -> Cuttings:
        """A copy on a device; from pinned memory it does not wait."""
        others = [
            None if x is None else x.to(device, non_blocking=True)
            for x in (self.lr, self.rows, self.columns)
        ]
        pixels, symmetry = (x.to(device, non_blocking=True) for x in (self.pixels, self.symmetry))
        return Cuttings(self.scale, pixels, symmetry, *others)


def cut(crops: Crops, first: int, count: int, *, pin: bool) -> Cuttings:
    """Samples first ... first + count - 1, in memory of the host, pinned (for CUDA) if asked."""
    p, s = crops.patch, crops.scale
    places = [crops.place(first + i) for i in range(count)]
    symmetry = torch.tensor([turn for *_, turn in places], dtype=torch.uint8)
    symmetry = symmetry.pin_memory() if pin else symmetry

    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(count, *shape, dtype=dtype, pin_memory=pin)

    if crops.images[0].lr_pixels is not None:
        lr, hr = empty(p, p, 3), empty(s * p, s * p, 3)
        for i, (image, y, x, _) in enumerate(places):
            lr.numpy()[i], hr.numpy()[i] = image.crop(y, x, p, p)
        return Cuttings(s, hr, symmetry, lr=lr)

    side = s * p + 2 * reach(s)
    kind = torch.from_numpy(weights(s, 0, p))
    pixels = empty(side, side, 3)
    rows, columns = (empty(*kind.shape, dtype=kind.dtype) for _ in range(2))
    for i, (image, y, x, _) in enumerate(places):
        pixels.numpy()[i] = context(image.hr, s, y, x, (p, p))
        rows.numpy()[i], columns.numpy()[i] = weights(s, y, p), weights(s, x, p)
    return Cuttings(s, pixels, symmetry, rows=rows, columns=columns)


def finish(cuttings: Cuttings) -> tuple[Tensor, Tensor]:
    """LR (N, 3, p, p) and HR (N, 3, s*p, s*p), fp32 in 0-1, channels last, on their device."""
    hr, lr, s = cuttings.pixels, cuttings.lr, cuttings.scale
    if lr is None:
        assert cuttings.rows is not None
        lr = downscale(hr.to(cuttings.rows.dtype), cuttings.rows, cuttings.columns, s)
        lr, hr = lr.to(torch.uint8), hr[:, reach(s) : -reach(s), reach(s) : -reach(s)]
    return _turned_floats(lr, cuttings.symmetry), _turned_floats(hr, cuttings.symmetry)


def _turned_floats(pixels: Tensor, symmetry: Tensor) -> Tensor:
    """(N, P, P, 3) uint8, each turned as `turned` does -> (N, 3, P, P) fp32 in 0-1."""
    mirrors = (lambda x: x.flip(1)), (lambda x: x.flip(2)), (lambda x: x.transpose(1, 2))
    for bit, mirror in enumerate(mirrors):
        chosen = (symmetry & 1 << bit).bool()[:, None, None, None]
        pixels = torch.where(chosen, mirror(pixels), pixels)
    # By a tensor: CUDA multiplies by the reciprocal of a number, which is not always the quotient.
    most = torch.full((), 255.0, device=pixels.device)
    return (pixels.float() / most).contiguous().permute(0, 3, 1, 2)
