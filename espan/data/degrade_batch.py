"""Degradations of several regions at once, on a GPU.

The steps, the random numbers and JPEG are those of `espan.data.degrade.run`; blurs, resizes and
noise run on the device.  The regions have different sizes, and so do their matrices, of which there
are different numbers: all are padded with zeros, which the products ignore.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from espan.data.degrade import LUMA, PHOTONS, Noise, Round, Step, compressed, normal, rounds


def run_batch(
    regions: Sequence[np.ndarray],
    steps: Sequence[Sequence[Step]],
    sizes: Sequence[tuple[int, int]],
    device: torch.device,
) -> list[np.ndarray]:
    """Like `run` of each region, up to rounding: LR regions in host memory."""
    now = [region.shape[:2] for region in regions]
    planned = [rounds(*sample) for sample in zip(steps, now, sizes, strict=True)]
    images = _padded([region.transpose(2, 0, 1) for region in regions]).to(device).float()
    for number in range(max(map(len, planned))):
        parts = [
            plan[number] if number < len(plan) else Round(size, [(None, None)], None, None)
            for plan, size in zip(planned, now, strict=True)
        ]
        images = _products(images, parts, now)
        now = [part.size for part in parts]
        if any(part.noise for part in parts):
            images = _with_noise(images, [part.noise for part in parts], now)
        coded = [i for i, part in enumerate(parts) if part.jpeg]
        if coded:
            before = _pixels(images[coded], [now[i] for i in coded])
            after = []
            for pixels, i in zip(before, coded, strict=True):
                jpeg = parts[i].jpeg
                assert jpeg is not None
                after.append(compressed(pixels, jpeg).transpose(2, 0, 1))
            images[coded] = _padded(after, images.shape[1:]).to(device).float()
    return _pixels(images, now)


def _products(images: Tensor, parts: Sequence[Round], old: Sequence[tuple[int, int]]) -> Tensor:
    """(N, 3, H, W) -> (N, 3, h, w): the sum over the terms of rows @ image @ columns.T."""
    count = max(len(part.terms) for part in parts)

    def matrices(axis: int) -> Tensor:
        shape = (count, max(part.size[axis] for part in parts), images.shape[2 + axis])
        stacks = []
        for part, size in zip(parts, old, strict=True):
            found = [pair[axis] for pair in part.terms]
            eye = np.eye(size[axis], dtype=np.float32)
            stacks.append(np.stack([eye if matrix is None else matrix for matrix in found]))
        return _padded(stacks, shape).to(images.device)

    rows, columns = matrices(0), matrices(1)
    lines = rows[:, :, None] @ images[:, None]
    return (lines @ columns[:, :, None].mT).sum(1)


def _with_noise(
    images: Tensor, noises: Sequence[Noise | None], sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """As `with_noise`, of (N, 3, H, W)."""

    def numbers(noise: Noise | None, size: tuple[int, int]) -> np.ndarray:
        if noise is None:
            return np.zeros((3, *size), np.float32)
        return np.broadcast_to(normal(noise, size), (3, *size))

    def each(value: Callable[[Noise], float]) -> Tensor:
        values = [0.0 if noise is None else value(noise) for noise in noises]
        return images.new_tensor(values)[:, None, None, None]

    drawn = [numbers(*pair) for pair in zip(noises, sizes, strict=True)]
    n = _padded(drawn, images.shape[1:]).to(images.device)
    luma = (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    light = torch.where(each(lambda noise: noise.gray) > 0, luma, images)
    photons = light.clamp(0, 255) * (PHOTONS / 255)
    skew = photons.clamp(max=1) * (n**2 - 1) / 6
    change = torch.maximum(photons.sqrt() * n + skew, -photons)
    poisson = each(lambda noise: noise.kind == "poisson") > 0
    change = torch.where(poisson, change * (255 / PHOTONS), n)
    noisy = (images + each(lambda noise: noise.level) * change).clamp(0, 255)
    some = images.new_tensor([noise is not None for noise in noises])[:, None, None, None]
    return torch.where(some > 0, noisy, images)


def _padded(arrays: Sequence[np.ndarray], shape: Sequence[int] | None = None) -> Tensor:
    """N arrays, each at the start of one of shape `shape`, or of the largest; zeros elsewhere."""
    if shape is None:
        shape = tuple(map(max, zip(*(array.shape for array in arrays), strict=True)))
    result = np.zeros((len(arrays), *shape), arrays[0].dtype)
    for mine, array in zip(result, arrays, strict=True):
        mine[tuple(map(slice, array.shape))] = array
    return torch.from_numpy(result)


def _pixels(images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """As `to_uint8`, of each image; in host memory."""
    rounded = (images + 0.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [
        np.ascontiguousarray(image[:height, :width])
        for image, (height, width) in zip(rounded, sizes, strict=True)
    ]
