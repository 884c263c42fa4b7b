"""Degraded LR images: blur, resize, noise and JPEG, as in Real-ESRGAN.

`draw` chooses the steps of a sample, plain numbers that follow from the seed and the index of the
sample alone.  `run` applies them to an HR region.  Every step treats a region as a whole and keeps
its centre in place, whatever the factors of the resizes, so that LR and HR are always aligned.

Blurs and resizes are products with matrices, which is a fast way to do both on small regions: a
resize is rows @ image @ columns.T, and a blur is a sum of such products, of which there are as many
as the rank of its kernel: one for a round Gaussian, three to five for most others.  Borders are
mirrored in the matrices.
"""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from PIL import Image

from espan.data.degrade_matrices import (
    METHODS,
    SUPPORT,
    Method,
    blurring,
    kernel,
    resizing,
    separable,
)
from espan.data.downscale import region
from espan.imaging import imresize

if TYPE_CHECKING:  # pydantic is a dependency of training only
    from espan.data.degrade_table import BlurTable, DegradeTable, JpegTable, NoiseTable, ResizeTable

PHOTONS = 256  # at white, of Poisson noise with a scale of 1
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
LARGEST_MARGIN = 16  # LR pixels; beyond, the region is mirrored


@dataclass(frozen=True)
class Blur:
    """A convolution with a normalised kernel.

    Attributes:
        kind: of `degrade_table.Kind`, or "sinc".
        size: side of the kernel in pixels, odd.
        sigma: standard deviations of the two axes in pixels; not used by "sinc".
        angle: of the first axis, in radians.
        beta: exponent of generalised and plateau shapes.
        cutoff: of "sinc", in radians per pixel, up to pi.
    """

    kind: str
    size: int
    sigma: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    @property
    def kernel(self) -> np.ndarray:
        """(size, size) fp64, of sum 1."""
        return kernel(
            self.kind,
            self.size,
            sigma=self.sigma,
            angle=self.angle,
            beta=self.beta,
            cutoff=self.cutoff,
        )

    def __str__(self) -> str:
        if self.kind == "sinc":
            return f"sinc {self.size}, {self.cutoff / math.pi:.2f} pi"
        sigma = " x ".join(f"{s:.1f}" for s in dict.fromkeys(self.sigma))
        return f"{self.kind.replace('_', ' ')} {sigma}"


@dataclass(frozen=True)
class Resize:
    """A resize to `factor` times the size of LR; area, or antialiased bilinear or bicubic."""

    method: Method
    factor: float

    def __str__(self) -> str:
        return f"{self.method} to {self.factor:.2f}"


@dataclass(frozen=True)
class Noise:
    """Noise that is added to the image, and clipping to 0-255.

    Attributes:
        kind: "gaussian" or "poisson".
        level: standard deviation in gray levels of 255; or the scale of `NoiseTable.scale`.
        gray: the same noise in all channels.
        seed: of its normal numbers, below 2**63.
    """

    kind: Literal["gaussian", "poisson"]
    level: float
    gray: bool
    seed: int

    def __str__(self) -> str:
        return f"{'gray ' if self.gray else ''}{self.kind} {self.level:.2g}"


@dataclass(frozen=True)
class Jpeg:
    """JPEG with this quality; chroma has half the resolution if `subsampled`."""

    quality: int
    subsampled: bool

    def __str__(self) -> str:
        return f"JPEG {self.quality} {'4:2:0' if self.subsampled else '4:4:4'}"


Step = Blur | Resize | Noise | Jpeg
T = TypeVar("T")


@dataclass(frozen=True)
class Degradation:
    """The steps of one sample, in order, and where JPEG's blocks begin.

    Attributes:
        steps: the last resize is to the size of LR.
        phase: rows and columns, 0-7, by which the region of a crop is larger at the top and left.
    """

    steps: tuple[Step, ...]
    phase: tuple[int, int]

    def margin(self, scale: int) -> int:
        """LR pixels around a crop that affect it, at most `LARGEST_MARGIN`.

        Whole images and crops differ by less than the effect of what is farther away, and by the
        phase of JPEG's blocks.
        """
        reach, factor = 0.0, float(scale)
        for step in self.steps:
            if isinstance(step, Blur):
                reach += (step.size // 2) / factor
            elif isinstance(step, Resize):
                reach += SUPPORT[step.method] * max(1 / factor, 1 / step.factor)
                factor = step.factor
        return min(LARGEST_MARGIN, math.ceil(reach))


def generator(seed: int, index: int) -> np.random.Generator:
    """The random numbers of sample `index`, independent of those of `Crops.place`."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, 1]))


def draw(table: DegradeTable, random: np.random.Generator, scale: int) -> Degradation | None:
    """The degradation of one sample, or None for a clean one."""
    if random.random() >= table.prob:
        return None
    steps: list[Step] = []
    if random.random() < table.first.prob:
        steps += _blur(table.first.blur, random)
        steps += _resize(table.first.resize, random, scale)
        steps += _noise(table.first.noise, random)
        steps += _jpeg(table.first.jpeg, random)
    if random.random() < table.second.prob:
        steps += _blur(table.second.blur, random)
        steps += _resize(table.second.resize, random, 1)
        steps += _noise(table.second.noise, random)
    last: list[Step] = [Resize(_method(random), 1.0)]
    if random.random() < table.final.sinc:
        size = _odd(table.final.size, random)
        last.append(Blur("sinc", size, cutoff=random.uniform(math.pi / 3, math.pi)))
    jpeg = _jpeg(table.final.jpeg, random)
    steps += [*jpeg, *last] if random.random() < 0.5 else [*last, *jpeg]
    return Degradation(tuple(steps), (int(random.integers(8)), int(random.integers(8))))


@dataclass(frozen=True)
class Round:
    """Some steps of a degradation: blurs and resizes, then noise, then JPEG.

    Attributes:
        size: height and width of the result.
        terms: pairs of matrices, rows and columns; None: the identity.
        noise, jpeg: None where there is none.
    """

    size: tuple[int, int]
    terms: list[tuple[np.ndarray | None, np.ndarray | None]]
    noise: Noise | None
    jpeg: Jpeg | None


def rounds(steps: Sequence[Step], old: tuple[int, int], size: tuple[int, int]) -> list[Round]:
    """The matrices and the other steps that turn a region of size `old` into one of size `size`."""
    result: list[Round] = []
    left = list(steps)

    def take(kind: type[T]) -> T | None:
        if left and isinstance(step := left[0], kind):
            del left[0]
            return step
        return None

    while left:
        blur, resize = take(Blur), take(Resize)
        new = old
        if resize is not None:
            new = (max(1, round(resize.factor * size[0])), max(1, round(resize.factor * size[1])))
        result.append(Round(new, _terms(blur, resize, old, new), take(Noise), take(Jpeg)))
        old = new
    return result


def run(pixels: np.ndarray, steps: Sequence[Step], size: tuple[int, int]) -> np.ndarray:
    """Apply steps to an HR region.

    Args:
        pixels: (H, W, 3) uint8.
        steps: from `draw`.
        size: height and width of the LR region.

    Returns (*size, 3) uint8.
    """
    image = pixels.transpose(2, 0, 1).astype(np.float32)
    for part in rounds(steps, image.shape[1:], size):
        image = functools.reduce(np.add, (_product(image, *pair) for pair in part.terms))
        if part.noise is not None:
            image = with_noise(image, part.noise)
        if part.jpeg is not None:
            image = compressed(to_uint8(image), part.jpeg).transpose(2, 0, 1).astype(np.float32)
    return to_uint8(image)


def crop_region(
    hr: np.ndarray, drawn: Degradation, scale: int, y: int, x: int, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int], tuple[slice, slice]]:
    """What LR rows y ... y + size[0] - 1 and columns x ... of an image are made from.

    Returns the HR region, the size of the LR region, and where the crop lies in it.
    """
    margin, (top, left) = drawn.margin(scale), drawn.phase
    top, left = margin + top, margin + left
    height, width = top + size[0] + margin, left + size[1] + margin
    around = region(hr, scale * (y - top), scale * (x - left), scale * height, scale * width)
    inside = slice(top, top + size[0]), slice(left, left + size[1])
    return around, (height, width), inside


def degraded(
    hr: np.ndarray, table: DegradeTable, scale: int, *, seed: int, index: int
) -> np.ndarray:
    """The LR image of a whole HR image, as sample `index` of a run with this seed.

    Args:
        hr: (H, W, 3) uint8, whose sides are multiples of the scale.
        table: what to do.
        scale: HR pixels per LR pixel.
        seed, index: 0 or more.

    Returns (H / scale, W / scale, 3) uint8.
    """
    drawn = draw(table, generator(seed, index), scale)
    height, width = (n // scale for n in hr.shape[:2])
    if drawn is None:
        return imresize(hr, Fraction(1, scale))
    return run(hr, drawn.steps, (height, width))


def _blur(table: BlurTable, random: np.random.Generator) -> list[Step]:
    if random.random() >= table.prob:
        return []
    size = _odd(table.size, random)
    if random.random() < table.sinc:
        lowest = math.pi / (3 if size < 13 else 5)
        return [Blur("sinc", size, cutoff=random.uniform(lowest, math.pi))]
    weights = np.array(list(table.kinds.values()))
    kind = str(random.choice(list(table.kinds), p=weights / weights.sum()))
    first, second = random.uniform(*table.sigma, 2).tolist()
    angle = random.uniform(-math.pi, math.pi)
    if kind.endswith("_iso") or kind == "iso":
        second, angle = first, 0.0
    beta = 1.0
    if "_" in kind:
        low, high = table.plateau_beta if "plateau" in kind else table.generalized_beta
        beta = random.uniform(low, 1) if random.random() < 0.5 else random.uniform(1, high)
    return [Blur(kind, size, (first, second), angle, beta)]


def _resize(table: ResizeTable, random: np.random.Generator, scale: int) -> list[Step]:
    """The factor is drawn relative to `scale` times the size of LR."""
    low, high = table.range
    kind, factor = random.random(), 1.0
    if kind < table.up:
        factor = random.uniform(1, high)
    elif kind < table.up + table.down:
        factor = random.uniform(low, 1)
    return [Resize(_method(random), factor * scale)]


def _method(random: np.random.Generator) -> Method:
    return METHODS[int(random.integers(len(METHODS)))]


def _noise(table: NoiseTable, random: np.random.Generator) -> list[Step]:
    kind, gray = random.random(), bool(random.random() < table.gray)
    seed = int(random.integers(2**63))
    if kind < table.gaussian:
        return [Noise("gaussian", random.uniform(*table.sigma), gray, seed)]
    if kind < table.gaussian + table.poisson:
        return [Noise("poisson", random.uniform(*table.scale), gray, seed)]
    return []


def _jpeg(table: JpegTable, random: np.random.Generator) -> list[Step]:
    if random.random() >= table.prob:
        return []
    quality = int(random.integers(table.quality[0], table.quality[1] + 1))
    return [Jpeg(quality, bool(random.random() < table.subsampled))]


def _odd(limits: tuple[int, int], random: np.random.Generator) -> int:
    return limits[0] + 2 * int(random.integers((limits[1] - limits[0]) // 2 + 1))


def _terms(
    blur: Blur | None, resize: Resize | None, old: tuple[int, int], new: tuple[int, int]
) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    resized = [
        None if resize is None or n == m else resizing(resize.method, n, m)
        for n, m in zip(old, new, strict=True)
    ]
    if blur is None:
        return [(resized[0], resized[1])]

    def matrix(taps: np.ndarray, axis: int) -> np.ndarray:
        blurred, then = blurring(taps, old[axis]), resized[axis]
        return blurred if then is None else then @ blurred

    return [(matrix(down, 0), matrix(across, 1)) for down, across in separable(blur.kernel)]


def _product(image: np.ndarray, rows: np.ndarray | None, columns: np.ndarray | None) -> np.ndarray:
    image = image if rows is None else rows @ image
    return image if columns is None else image @ columns.T


def normal(noise: Noise, size: tuple[int, int]) -> np.ndarray:
    """(3, *size) fp32 numbers of a normal distribution; (1, *size) for gray noise."""
    random = np.random.Generator(np.random.SFC64(noise.seed))
    return random.standard_normal((1 if noise.gray else 3, *size), np.float32)


def with_noise(image: np.ndarray, noise: Noise) -> np.ndarray:
    """(3, H, W) fp32 in 0-255, with noise, clipped."""
    numbers, level = normal(noise, image.shape[1:]), np.float32(noise.level)
    if noise.kind == "gaussian":
        return np.clip(image + level * numbers, 0, 255)
    light = np.tensordot(LUMA, image, 1)[None] if noise.gray else image
    photons = np.clip(light, 0, 255) * np.float32(PHOTONS / 255)
    # The quantile of a Poisson distribution by its Cornish-Fisher expansion, which has the right
    # mean and third moment, and a variance too large by 1/18.  The numbers are thus the same on
    # every device.  A count is not negative.  Below one photon the last term fades, because black
    # has no noise.
    skew = np.minimum(photons, 1) * (numbers**2 - 1) / 6
    change = np.maximum(np.sqrt(photons) * numbers + skew, -photons)
    return np.clip(image + level * np.float32(255 / PHOTONS) * change, 0, 255)


def compressed(pixels: np.ndarray, jpeg: Jpeg) -> np.ndarray:
    """(H, W, 3) uint8, written as JPEG and read again."""
    file = io.BytesIO()
    subsampling = "4:2:0" if jpeg.subsampled else "4:4:4"
    Image.fromarray(pixels).save(file, "JPEG", quality=jpeg.quality, subsampling=subsampling)
    return np.asarray(Image.open(file))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """(3, H, W) floats -> (H, W, 3), rounded."""
    rounded = np.clip(image + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(rounded.transpose(1, 2, 0))
