"""A picture of what a [degrade] table does to a photograph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from espan.data.degrade import crop_region, draw, generator, run
from espan.data.images import image_in_memory
from espan.errors import EspanError

if TYPE_CHECKING:  # pydantic is a dependency of training only
    from espan.data.degrade_table import DegradeTable

SIDE = 192  # HR pixels of the crop
COLUMNS, ROWS = 4, 3
_GAP, _LINE = 8, 14


def preview_picture(pixels: np.ndarray, table: DegradeTable, scale: int) -> np.ndarray:
    """The centre of a photograph, its clean LR image, and ten samples of a run with seed 0.

    LR pixels are shown as squares as large as `scale` HR pixels, above the steps that made them.

    Args:
        pixels: (H, W, 3) uint8, the photograph.
        table: what to do.
        scale: HR pixels per LR pixel.

    Returns (height, width, 3) uint8.  Raises EspanError for a photograph of fewer than 8 LR pixels.
    """
    image = image_in_memory("photograph", pixels, scale)
    height, width = (min(n, SIDE // scale) for n in (image.height, image.width))
    if min(height, width) < 8:
        raise EspanError(
            f"a photograph of {pixels.shape[1]} x {pixels.shape[0]} pixels is too small for a "
            f"preview at x{scale}; both sides need {8 * scale}, and the scale at most {SIDE // 8}"
        )
    y, x = (image.height - height) // 2, (image.width - width) // 2
    lr, hr = image.crop(y, x, height, width)
    cells = [(hr, ["HR"]), (_enlarged(lr, scale), ["LR, clean"])]
    for index in range(COLUMNS * ROWS - len(cells)):
        drawn = draw(table, generator(0, index), scale)
        if drawn is None:
            cells.append((_enlarged(lr, scale), ["clean"]))
            continue
        around, size, inside = crop_region(image.hr, drawn, scale, y, x, (height, width))
        degraded = run(around, drawn.steps, size)[inside]
        cells.append((_enlarged(degraded, scale), [str(step) for step in drawn.steps]))

    font = ImageFont.load_default(12)
    across = scale * width + _GAP
    down = scale * height + _GAP + _LINE * max(len(label) for _, label in cells)
    picture = PIL.Image.new("RGB", (COLUMNS * across + _GAP, ROWS * down + _GAP), "white")
    pen = ImageDraw.Draw(picture)
    for number, (shown, label) in enumerate(cells):
        left, top = _GAP + number % COLUMNS * across, _GAP + number // COLUMNS * down
        picture.paste(PIL.Image.fromarray(np.ascontiguousarray(shown)), (left, top))
        for i, line in enumerate(label):
            pen.text((left, top + scale * height + i * _LINE), line, "black", font)
    return np.asarray(picture)


def _enlarged(lr: np.ndarray, scale: int) -> np.ndarray:
    return lr.repeat(scale, axis=0).repeat(scale, axis=1)
