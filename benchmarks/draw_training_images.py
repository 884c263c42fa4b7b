"""Draws images to train on: collages of drawings and text, and random patterns.

    python benchmarks/draw_training_images.py collages photographs/ drawings/ -o collages/
    python benchmarks/draw_training_images.py patterns photographs/ -o patterns/

Photographs lack what people also enlarge: text, diagrams, comics, and sharply drawn patterns such
as the wings of a butterfly.  The collages place SVG drawings and words, some of them turned, over
photographs and plain colours.  The patterns are level sets of random fields: veins, spots, stripes
and outlines, over colour gradients and photographs.  The images are 8-bit RGB, as PNG.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyvips

ROOT = Path(__file__).parents[1]
SIDES = {"collages": 1024, "patterns": 768}
COUNTS = {"collages": 140, "patterns": 100}
FONTS = (
    *("DejaVu Sans", "DejaVu Sans Bold", "DejaVu Serif", "DejaVu Sans Mono"),
    *("Lato", "Lato Bold", "Lato Black", "Roboto", "EB Garamond"),
    *("Liberation Serif", "Liberation Serif Italic"),
    *("Liberation Sans", "Liberation Sans Bold", "Liberation Mono"),
)


class Photographs:
    """Random parts of photographs; smaller ones are enlarged."""

    def __init__(self, folder: Path, side: int, random: np.random.Generator) -> None:
        self.files = sorted(p for p in folder.iterdir() if p.is_file())
        self.side, self.random = side, random

    def crop(self) -> pyvips.Image:
        image = pyvips.Image.new_from_file(str(self.random.choice(self.files)))
        image = image.colourspace("srgb")[:3]
        smallest = min(image.width, image.height)
        if smallest < self.side:
            image = image.resize(1.001 * self.side / smallest, kernel="lanczos3")
        x = self.random.integers(image.width - self.side + 1)
        y = self.random.integers(image.height - self.side + 1)
        return image.crop(x, y, self.side, self.side).copy_memory()


def collages(photographs: Photographs, drawings: Path) -> Iterator[pyvips.Image]:
    random, side = photographs.random, photographs.side
    files = sorted(drawings.rglob("*.svg"))
    documents = (ROOT / "docs").glob("*.md")
    words = [w for p in sorted(documents) for w in p.read_text("utf-8").split() if w.isalnum()]

    def one_of(chance: float) -> bool:
        return random.random() < chance

    def colour() -> list[int]:
        if one_of(0.6):
            return random.integers(256, size=3).tolist()
        return [255 * int(random.integers(2))] * 3

    def plain(width: int, height: int) -> pyvips.Image:
        image = pyvips.Image.black(width, height, bands=3) + colour()
        return image.cast("uchar").copy(interpretation="srgb")

    def turned(image: pyvips.Image, angle: float) -> pyvips.Image:
        return image.similarity(angle=angle, interpolate=pyvips.Interpolate.new("bicubic"))

    def drawing() -> pyvips.Image | None:
        size = int(2 ** random.uniform(6.6, 9.0))
        try:
            image = pyvips.Image.thumbnail(str(random.choice(files)), size, height=size)
            if one_of(0.5):
                image = turned(image, random.uniform(0, 360))
            return image.colourspace("srgb").copy_memory()
        except pyvips.Error:  # a damaged file; folders of thousands of drawings have some
            return None

    def text() -> pyvips.Image | None:
        some = " ".join(random.choice(words, random.integers(1, 30)))
        font = f"{random.choice(FONTS)} {int(2 ** random.uniform(3.6, 6.2))}"
        alpha = pyvips.Image.text(some, font=font, width=int(random.integers(150, 700)), dpi=72)
        if one_of(0.2):
            alpha = turned(alpha, random.uniform(-90, 90))
        if min(alpha.width, alpha.height) < 4:
            return None
        image = plain(alpha.width, alpha.height).bandjoin(alpha.cast("uchar"))
        if one_of(0.5):
            plate = plain(alpha.width + 20, alpha.height + 20).bandjoin(255)
            image = plate.composite2(image, "over", x=10, y=10)
        return image.copy_memory()

    while True:
        canvas = (photographs.crop() if one_of(0.5) else plain(side, side)).bandjoin(255)
        for _ in range(random.integers(12, 60)):
            image = text() if one_of(0.25) else drawing()
            if image is None or image.width > 1.2 * side:
                continue
            x, y = (
                random.integers(-length // 3, side - 2 * length // 3)
                for length in (image.width, image.height)
            )
            canvas = canvas.composite2(image.cast("uchar"), "over", x=x, y=y).copy_memory()
        yield canvas[:3].cast("uchar")


def patterns(photographs: Photographs) -> Iterator[pyvips.Image]:
    random, side = photographs.random, photographs.side
    frequency_y = np.fft.fftfreq(side)[:, None]
    frequency_x = np.fft.rfftfreq(side)[None]

    def field(
        wavelength: float, bandwidth: float = 0.5, stretch: float = 1.0, turn: float = 0.0
    ) -> np.ndarray:
        """A random field (side, side) of deviation 1, with structures of `wavelength` pixels."""
        x = frequency_x * np.cos(turn) + frequency_y * np.sin(turn)
        y = frequency_y * np.cos(turn) - frequency_x * np.sin(turn)
        octaves = np.log(np.hypot(stretch * x, y / stretch) * wavelength + 1e-9)
        spectrum = np.fft.rfft2(random.standard_normal((side, side)))
        result = np.fft.irfft2(spectrum * np.exp(-((octaves / bandwidth) ** 2) / 2), (side, side))
        return result / result.std()

    def inside(level: np.ndarray) -> np.ndarray:
        """(side, side, 1): 1 where `level` is above 0, with an edge of 0.8 to 2.5 pixels."""
        slope = np.hypot(*np.gradient(level))
        slope = np.maximum(slope, 0.3 * np.median(slope))
        return np.clip(0.5 + level / (slope * random.uniform(0.8, 2.5)), 0, 1)[..., None]

    def colours() -> np.ndarray:
        if random.random() < 0.3:
            return photographs.crop().numpy().astype(float)
        low, high = random.uniform(0, 255, (2, 3))
        if random.random() < 0.4:
            high = low + random.normal(0, 30, 3)
        share = 1 / (1 + np.exp(-1.5 * field(random.uniform(150, 600))[..., None]))
        return low * (1 - share) + high * share

    def dark() -> np.ndarray:
        return colours() * (random.uniform(0, 0.35) if random.random() < 0.8 else 1)

    def painted(image: np.ndarray, mask: np.ndarray, paint: np.ndarray) -> np.ndarray:
        return image * (1 - mask) + paint * mask

    def figure() -> np.ndarray:
        stretch = np.exp(random.uniform(0, 0.9)) if random.random() < 0.5 else 1.0
        level = field(
            2 ** random.uniform(4.2, 7.3),
            random.uniform(0.15, 0.6),
            stretch,
            random.uniform(0, np.pi),
        )
        kind = random.choice(["veins", "regions", "outlines", "stripes"])
        if kind == "veins":
            width = random.uniform(0.05, 0.45) * (1 + 0.5 * np.tanh(field(200)))
            return painted(colours(), inside(width - np.abs(level)), dark())
        if kind == "regions":
            return painted(colours(), inside(level + random.uniform(-0.8, 0.8)), dark())
        if kind == "stripes":
            phase = random.uniform(6, 25) * field(2 ** random.uniform(7.5, 9.5))
            return painted(colours(), inside(np.sin(phase) + random.uniform(-0.5, 0.5)), dark())
        level = level - random.uniform(-0.5, 0.5)
        image = painted(colours(), inside(level), colours())
        return painted(image, inside(random.uniform(0.05, 0.3) - np.abs(level)), dark())

    while True:
        image = figure()
        if random.random() < 0.6:
            spots = field(2 ** random.uniform(3.6, 6.2), random.uniform(0.15, 0.5))
            mask = inside(spots - random.uniform(0.8, 1.8))
            if random.random() < 0.6:
                mask = mask * inside(field(160) + 0.2)
            light = colours() if random.random() < 0.5 else random.uniform(180, 255, 3)
            image = painted(image, mask, light)
        if random.random() < 0.5:
            image = image * (1 + 0.25 * np.tanh(field(random.uniform(60, 300))))[..., None]
        if random.random() < 0.5:
            grain = field(
                random.uniform(3, 10),
                0.4,
                np.exp(random.uniform(0, 1)),
                random.uniform(0, np.pi),
            )
            image = image * (1 + random.uniform(0.01, 0.08) * grain)[..., None]
        pixels = np.clip(image, 0, 255).round().astype(np.uint8)
        yield pyvips.Image.new_from_array(pixels, interpretation="srgb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=SIDES)
    parser.add_argument("photographs", type=Path, help="a folder of image files")
    parser.add_argument("drawings", type=Path, nargs="?", help="a folder of SVG files")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--count", type=int, help="default: 140 collages, 100 patterns")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.kind == "collages") != (options.drawings is not None):
        parser.error("collages need a folder of drawings, patterns do not")
    random = np.random.default_rng(options.seed)
    photographs = Photographs(options.photographs, SIDES[options.kind], random)
    images = (
        collages(photographs, options.drawings)
        if options.kind == "collages"
        else patterns(photographs)
    )
    options.output.mkdir(parents=True, exist_ok=True)
    for i, image in zip(range(options.count or COUNTS[options.kind]), images, strict=False):
        image.write_to_file(str(options.output / f"{options.kind[:-1]}_{i:03d}.png"))


if __name__ == "__main__":
    main()
