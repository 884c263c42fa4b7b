"""Cutting an image into tiles whose results, put together, equal the result of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

# An image of more LR pixels is tiled.  PyTorch's convolutions take 1.2 KB a pixel beyond the input
# in fp32 with 32 channels, the output of 192 bytes included: 0.65 GB here, measured on a CPU.
LARGEST_UNTILED = 768 * 768
# At ESPAN's halo of 23 pixels, tiles of 512 compute 19% more than the image has; 256 would be 39%.
TILE = 512


# Tiles begin, with their halo, at a multiple of this: on the grid of Winograd's F(4x4, 3x3), so
# that the CPU kernels compute every pixel as they would in the whole image, to the last bit.
GRID = 4


class Span(NamedTuple):
    """Along one axis: a tile keeps [start, stop) and reads [read_start, read_stop)."""

    start: int
    stop: int
    read_start: int
    read_stop: int


class Tile(NamedTuple):
    """A rectangle of LR pixels to be computed, with the halo that must be read for it."""

    y: Span
    x: Span


def tile_size(height: int, width: int) -> int | None:
    """The tile to use for an image of this size; None: no tiling."""
    return None if height * width <= LARGEST_UNTILED else TILE


def tiles(height: int, width: int, size: int | None, halo: int) -> Iterator[Tile]:
    """Tiles of at most `size` x `size` (but 4 x 4) that cover the image once; None: one tile.

    `halo` pixels more are read on each side, as far as the image goes: with the receptive radius
    of the network every output pixel sees all it depends on, and at the border of the image the
    same zero padding as without tiles.
    """
    for y in _spans(height, size, halo):
        for x in _spans(width, size, halo):
            yield Tile(y, x)


def _spans(length: int, size: int | None, halo: int) -> list[Span]:
    cells = -(-length // GRID)
    count = 1 if size is None else -(-cells // max(1, size // GRID))
    edges = [min(length, GRID * (cells * i // count)) for i in range(count + 1)]  # nearly equal
    halo = -(-halo // GRID) * GRID
    return [
        Span(a, b, max(0, a - halo), min(length, b + halo)) for a, b in itertools.pairwise(edges)
    ]
