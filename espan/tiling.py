"""Cutting an image into tiles whose combined results equal that of the whole image to rounding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

# Images with more LR pixels are tiled.  In fp32 with 32 channels, PyTorch's convolutions take
# 1.2 KB per pixel beyond the input, including 192 bytes of output: 0.65 GB here, measured on a CPU.
LARGEST_UNTILED = 768 * 768
# Pixels that a tile leaves for its halos, in each direction.
_HALOS = 256
# With ESPAN's halo of 23 pixels, tiles of 512 compute 19% more pixels than the image has, tiles of
# 256 39%.
TILE = math.isqrt(LARGEST_UNTILED) - _HALOS
# Tiles with their halo begin at a multiple of this, on the grid of Winograd's F(4x4, 3x3).  Pixels
# still round differently where the grid reaches beyond the halo: by up to 4e-7 with espan_x4.
GRID = 4


class Span(NamedTuple):
    """A tile along one axis: it keeps [start, stop) and reads [read_start, read_stop)."""

    start: int
    stop: int
    read_start: int
    read_stop: int


class Tile(NamedTuple):
    """A rectangle of LR pixels to compute, with the halo to read for it."""

    y: Span
    x: Span


def tile_size(height: int, width: int, most_pixels: int = LARGEST_UNTILED) -> int | None:
    """The tile to use for an image of this size, if a call may have so many; None: no tiling."""
    return None if height * width <= most_pixels else math.isqrt(most_pixels) - _HALOS


def tiles(
    height: int, width: int, size: int | None, halo: int, unshuffle: int = 1
) -> Iterator[Tile]:
    """Tiles of at most `size` x `size` (but 4 x 4) that cover the image once; None: one tile.

    Up to the border of the image, at least `halo` more pixels are read on each side.  If that is
    the receptive radius of the network, no output pixel depends on how the image is tiled.  A
    network that unshuffles the image reads `unshuffle` x `unshuffle` pixels as one of the grid.
    """
    grid = GRID * unshuffle
    for y in _spans(height, size, halo, grid):
        for x in _spans(width, size, halo, grid):
            yield Tile(y, x)


def _spans(length: int, size: int | None, halo: int, grid: int) -> list[Span]:
    cells = -(-length // grid)
    count = 1 if size is None else -(-cells // max(1, size // grid))
    edges = [min(length, grid * (cells * i // count)) for i in range(count + 1)]  # nearly equal
    halo = -(-halo // grid) * grid
    return [
        Span(a, b, max(0, a - halo), min(length, b + halo)) for a, b in itertools.pairwise(edges)
    ]
