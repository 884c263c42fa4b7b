"""Upscale the sample photograph, and show a part of it beside a bicubic enlargement.

Usage: python examples/demo.py [OUTPUT_FOLDER]
"""

import sys
import time
from pathlib import Path

from PIL import Image

import espan

SAMPLE = Path(__file__).with_name("colosseum.png")
# The part that is shown side by side: left, top, right, bottom, in LR pixels.
CROP = (150, 115, 250, 195)
GAP = 4


def main(folder: Path) -> None:
    """Write colosseum_x4.png and side_by_side.jpg (bicubic, espan) to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    upscaler = espan.Upscaler()
    image = Image.open(SAMPLE)
    upscaler(image)  # the first run also allocates memory
    started = time.perf_counter()
    result = upscaler(image)
    seconds = time.perf_counter() - started
    result.save(folder / "colosseum_x4.png")

    box = tuple(upscaler.scale * edge for edge in CROP)
    bicubic = image.resize(result.size, Image.Resampling.BICUBIC)
    width, height = box[2] - box[0], box[3] - box[1]
    sheet = Image.new("RGB", (2 * width + GAP, height), "gray")
    sheet.paste(bicubic.crop(box), (0, 0))
    sheet.paste(result.crop(box), (width + GAP, 0))
    sheet.save(folder / "side_by_side.jpg", quality=92, subsampling="4:4:4")

    print(f"{image.width}x{image.height} -> {result.width}x{result.height}")
    print(f"time          {seconds * 1e3:.0f} ms ({upscaler.backend} on {upscaler.device})")
    print(f"result        {folder / 'colosseum_x4.png'}")
    print(f"side by side  {folder / 'side_by_side.jpg'} (left: bicubic, right: espan)")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("demo"))
