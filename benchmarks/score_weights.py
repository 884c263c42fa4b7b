"""PSNR of the bundled weights: test sets, photographs, and the same photographs degraded.

    python benchmarks/score_weights.py testsets/ photographs/ --output FILE --picture FILE

`testsets/` has Set5/HR and Set14/HR; `photographs/` those that no weights were trained on
(HELD_OUT), of which the central 512 x 512 pixels are used.  LR images are made as MATLAB's imresize
makes them.  "Degraded" LR images are made by the [degrade] table of `espan_x2_photo` or
`espan_x4_photo`, without the share that it leaves clean, with a fixed seed, for x2 and x4.  PSNR is
on RGB, in uint8, without a border as wide as the scale; the result is the mean over the images.

The picture shows a part of the sample photograph, saved as JPEG with quality 50, enlarged x2 and
x4: bicubic interpolation, the weights for clean images, and those for photographs.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks import conftest as machine
from espan import checkpoints
from espan.data.degrade import degraded
from espan.evaluation.evaluate import find_pairs, read_rgb
from espan.evaluation.metrics import psnr
from espan.files import json_text
from espan.imaging import imresize, modcrop
from espan.training.experiment import read, shipped
from espan.upscaling import Upscaler

HELD_OUT = (
    "budgie_casa-mila.jpg",
    "budgie_kitten-on-lawn.jpg",
    "budgie_piazza-gae-aulenti.jpg",
    "budgie_roman-colosseum.jpg",
    "elementary_Julia_Craice.jpg",
    "lomiri_Dragonfly_by_Bolly.jpg",
    "popos_parky-tree.jpg",
    "solus_komodo-dragon.jpg",
)
SIDE = 512  # HR pixels
SEED = 1  # of the degradations; training and its validation have 0

SAMPLE = Path(__file__).resolve().parent.parent / "examples/colosseum.png"
SHOWN = {2: (150, 105, 310, 205), 4: (150, 115, 230, 165)}  # left, top, right, bottom by scale

Pairs = list[tuple[np.ndarray, np.ndarray]]


def centre(image: np.ndarray) -> np.ndarray:
    y, x = ((n - SIDE) // 2 for n in image.shape[:2])
    return image[y : y + SIDE, x : x + SIDE]


def bicubic_pairs(images: Iterable[np.ndarray], scale: int) -> Pairs:
    """LR, as MATLAB's imresize makes it, and HR."""
    cropped = [modcrop(hr, scale) for hr in images]
    return [(imresize(hr, Fraction(1, scale)), hr) for hr in cropped]


def degraded_pairs(images: Iterable[np.ndarray], scale: int) -> Pairs:
    table = read(f"espan_x{scale}_photo").degrade
    assert table is not None
    table = table.model_copy(update={"prob": 1.0})  # none of them clean
    cropped = (modcrop(hr, scale) for hr in images)
    return [(degraded(hr, table, scale, seed=SEED, index=i), hr) for i, hr in enumerate(cropped)]


def scores(
    cases: dict[str, Pairs], scale: int, enlarge: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """Mean PSNR in dB of each case."""
    return {
        name: round(mean(psnr(enlarge(lr), hr, border=scale) for lr, hr in pairs), 4)
        for name, pairs in cases.items()
    }


def picture() -> Image.Image:
    """For each scale a row: bicubic, weights for clean images, weights for photographs."""
    file = io.BytesIO()
    Image.open(SAMPLE).convert("RGB").save(file, "JPEG", quality=50)
    small = Image.open(file)
    rows = []
    for s, box in SHOWN.items():
        part = tuple(s * edge for edge in box)
        large = [small.resize((s * small.width, s * small.height), Image.Resampling.BICUBIC)]
        large += [Upscaler(f"espan_x{s}{kind}")(small) for kind in ("", "_photo")]
        rows.append(np.hstack([np.asarray(image.crop(part)) for image in large]))
    return Image.fromarray(np.vstack(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("testsets", type=Path)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    sets = {
        name: [read_rgb(pair.hr) for pair in find_pairs(options.testsets / name / "HR", None, [])]
        for name in ("Set5", "Set14")
    }
    photographs = [centre(read_rgb(options.photographs / name)) for name in HELD_OUT]
    rows: list[dict[str, Any]] = []
    cases: dict[int, dict[str, Pairs]] = {}
    for name in checkpoints.bundled():
        upscaler = Upscaler(name)
        s = upscaler.scale
        if s not in cases:
            cases[s] = {name: bicubic_pairs(images, s) for name, images in sets.items()}
            cases[s]["photographs"] = bicubic_pairs(photographs, s)
            if f"espan_x{s}_photo" in shipped():
                cases[s]["degraded"] = degraded_pairs(photographs, s)
            bicubic = scores(cases[s], s, partial(imresize, scale=s))
            rows.append({"name": None, "scale": s, "psnr": bicubic})
        rows.append({"name": name, "scale": s, "psnr": scores(cases[s], s, upscaler)})
        print(rows[-1])
    if options.output:
        about = {"processor": machine._processor(), "espan": machine._commit()}
        text = json_text({"machine": about, "rows": rows}, indent=1)
        options.output.write_text(text + "\n", encoding="utf-8")
    if options.picture:
        picture().save(options.picture, quality=90, subsampling="4:4:4")


if __name__ == "__main__":
    main()
