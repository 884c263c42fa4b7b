"""Crops that are downscaled, flipped and converted on the training device.

The host only copies uint8 pixels, 125 kB for a patch of 48 at x4.  The results are those of
`Crops.batch`, bit for bit: the same `downscale` runs on tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from espan.data.crops import Crops
from espan.data.degrade import crop_region
from espan.data.degrade_batch import run_batch
from espan.data.downscale import context, downscale, reach, weights
from espan.data.images import TrainingImage


@dataclass(frozen=True)
class RawCrops:
    """What the host sends to the device for N crops.

    Attributes:
        scale: HR pixels per LR pixel.
        pixels: (N, P, P, 3) uint8: HR, with the context that LR is computed from if not given.
        lr: (N, p, p, 3) uint8, where LR is given or degraded.
        rows, columns: (N, p, taps), from `weights`, where it is not.
        symmetry: (N,) uint8, as in `flipped`.
    """

    scale: int
    pixels: Tensor
    symmetry: Tensor
    lr: Tensor | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None

    def to(self, device: torch.device) -> RawCrops:
        """A copy on a device, asynchronous from pinned memory."""
        others = [
            None if x is None else x.to(device, non_blocking=True)
            for x in (self.lr, self.rows, self.columns)
        ]
        pixels, symmetry = (x.to(device, non_blocking=True) for x in (self.pixels, self.symmetry))
        return RawCrops(self.scale, pixels, symmetry, *others)

    def copy_(self, other: RawCrops) -> None:
        """Copy the tensors of crops of the same shapes, asynchronously from pinned memory."""
        for name in ("pixels", "symmetry", "lr", "rows", "columns"):
            mine = getattr(self, name)
            if mine is not None:
                mine.copy_(getattr(other, name), non_blocking=True)


def cut(
    crops: Crops, first: int, count: int, *, pin: bool, device: torch.device | None = None
) -> RawCrops:
    """Samples first ... first + count - 1, in host memory, pinned on request.

    `device` runs degradations, except JPEG; None: the host.
    """
    p, s = crops.patch, crops.scale
    places = [crops.place(first + i) for i in range(count)]
    symmetry = torch.tensor([symmetry for *_, symmetry in places], dtype=torch.uint8)
    symmetry = symmetry.pin_memory() if pin else symmetry

    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
        return torch.empty(count, *shape, dtype=dtype, pin_memory=pin)

    if crops.images[0].lr_pixels is not None or crops.degrade is not None:
        lr, hr = empty(p, p, 3), empty(s * p, s * p, 3)
        if device is not None and crops.degrade is not None:
            pairs = _degraded(crops, first, places, device)
        else:
            pairs = [crops.crop(first + i, *place[:3]) for i, place in enumerate(places)]
        for i, pair in enumerate(pairs):
            lr.numpy()[i], hr.numpy()[i] = pair
        return RawCrops(s, hr, symmetry, lr=lr)

    side = s * p + 2 * reach(s)
    kind = torch.from_numpy(weights(s, 0, p))
    pixels = empty(side, side, 3)
    rows, columns = (empty(*kind.shape, dtype=kind.dtype) for _ in range(2))
    for i, (image, y, x, _) in enumerate(places):
        pixels.numpy()[i] = context(image.hr, s, y, x, (p, p))
        rows.numpy()[i], columns.numpy()[i] = weights(s, y, p), weights(s, x, p)
    return RawCrops(s, pixels, symmetry, rows=rows, columns=columns)


def _degraded(
    crops: Crops,
    first: int,
    places: Sequence[tuple[TrainingImage, int, int, int]],
    device: torch.device,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """As `Crops.crop` of each sample, up to rounding; all are degraded at once."""
    p, s = crops.patch, crops.scale
    pairs = []
    regions, steps, sizes, insides = [], [], [], []
    for i, (image, y, x, _) in enumerate(places):
        drawn, hr = crops.drawn(first + i), image.hr
        if drawn is None:
            pairs.append(image.crop(y, x, p, p))
            continue
        region, size, inside = crop_region(hr, drawn, s, y, x, (p, p))
        regions.append(region)
        steps.append(drawn.steps)
        sizes.append(size)
        insides.append((i, inside))
        pairs.append((region[:0], hr[s * y : s * (y + p), s * x : s * (x + p)]))
    if regions:
        results = run_batch(regions, steps, sizes, device)
        for lr, (i, inside) in zip(results, insides, strict=True):
            pairs[i] = lr[inside], pairs[i][1]
    return pairs


def finish(raw: RawCrops) -> tuple[Tensor, Tensor]:
    """LR (N, 3, p, p) and HR (N, 3, s*p, s*p), fp32 in 0-1, channels last, on their device."""
    hr, lr, s = raw.pixels, raw.lr, raw.scale
    if lr is None:
        assert raw.rows is not None
        lr = downscale(hr.to(raw.rows.dtype), raw.rows, raw.columns, s)
        lr, hr = lr.to(torch.uint8), hr[:, reach(s) : -reach(s), reach(s) : -reach(s)]
    chosen = [(raw.symmetry & 1 << bit).bool()[:, None, None, None] for bit in range(3)]
    return _flipped_floats(lr, chosen), _flipped_floats(hr, chosen)


def _flipped_floats(pixels: Tensor, chosen: list[Tensor]) -> Tensor:
    """(N, P, P, 3) uint8, each flipped as by `flipped` -> (N, 3, P, P) fp32 in 0-1."""
    flips = (lambda x: x.flip(1)), (lambda x: x.flip(2)), (lambda x: x.transpose(1, 2))
    for bit, flip in zip(chosen, flips, strict=True):
        pixels = torch.where(bit, flip(pixels), pixels)
    # A tensor, because CUDA divides by a Python number by multiplying with its reciprocal, which
    # rounds differently.
    largest = torch.full((), 255.0, device=pixels.device)
    return (pixels.contiguous() / largest).permute(0, 3, 1, 2)
