"""The tables of ``[degrade]``.  The defaults are those of Real-ESRGAN (see `DegradeTable`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from espan.tables import Table, Weight


def _ordered(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("the first number must not be above the second")
    return limits


def _above_zero(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] <= 0:
        raise ValueError("both numbers must be above 0")
    return limits


def _around_one(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] <= 1 <= limits[1]:
        raise ValueError("1 must be between the two numbers")
    return limits


def _odd(limits: tuple[int, int]) -> tuple[int, int]:
    if limits[0] % 2 == 0 or limits[1] % 2 == 0:
        raise ValueError("both sizes must be odd")
    return limits


# TOML and JSON have arrays, not tuples.
_Pair = Field(strict=False)
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[Weight, Weight], _Pair, AfterValidator(_ordered)]
Above = Annotated[Range, AfterValidator(_above_zero)]
Around = Annotated[Above, AfterValidator(_around_one)]
_Side = Annotated[int, Field(ge=3, le=51)]
Size = Annotated[tuple[_Side, _Side], _Pair, AfterValidator(_ordered), AfterValidator(_odd)]
Quality = Annotated[int, Field(ge=1, le=100)]

Kind = Literal[
    "iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"
]

KINDS: dict[Kind, float] = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}


class BlurTable(Table):
    """A blur at the resolution that the image has before the pass.

    Attributes:
        prob: probability of the blur.
        sinc: probability that it is a sinc filter, which rings, instead of one of `kinds`.
        kinds: their relative frequencies: Gaussians, generalised Gaussians and plateaus; "iso" are
            round, "aniso" elliptical and rotated.
        size: side of the kernel in pixels, odd.
        sigma: standard deviation in pixels, of each axis.
        generalized_beta, plateau_beta: exponents of the two other shapes; half of the draws are
            below 1, half above.
    """

    prob: Probability = 1.0
    sinc: Probability = 0.1
    kinds: dict[Kind, Weight] = Field(default_factory=KINDS.copy)
    size: Size = (7, 21)
    sigma: Above = (0.2, 3.0)
    generalized_beta: Around = (0.5, 4.0)
    plateau_beta: Around = (1.0, 2.0)

    @model_validator(mode="after")
    def _some_kind(self) -> BlurTable:
        if not any(self.kinds.values()):
            raise ValueError("one of the kinds must have a frequency above 0")
        return self


class ResizeTable(Table):
    """A resize by the area, bilinear or bicubic method, with equal probability.

    Attributes:
        up, down: probabilities of a factor above and below 1; otherwise it is 1.
        range: the smallest and the largest factor.
    """

    up: Probability = 0.2
    down: Probability = 0.7
    range: Around = (0.15, 1.5)

    @model_validator(mode="after")
    def _at_most_one(self) -> ResizeTable:
        if self.up + self.down > 1 + 1e-9:
            raise ValueError("up and down are probabilities; their sum must be at most 1")
        return self


class NoiseTable(Table):
    """Gaussian or Poisson noise.

    Attributes:
        gaussian, poisson: probabilities of the two; their sum is at most 1.
        sigma: standard deviation of Gaussian noise, in gray levels of 255.
        scale: of Poisson noise, as multiples of that of a sensor that counts 256 photons at white.
        gray: probability that all three channels have the same noise.
    """

    gaussian: Probability = 0.5
    poisson: Probability = 0.5
    sigma: Range = (1.0, 30.0)
    scale: Range = (0.05, 3.0)
    gray: Probability = 0.4

    @model_validator(mode="after")
    def _at_most_one(self) -> NoiseTable:
        if self.gaussian + self.poisson > 1 + 1e-9:
            raise ValueError("gaussian and poisson are probabilities; their sum must be at most 1")
        return self


class JpegTable(Table):
    """JPEG compression by libjpeg.

    Attributes:
        prob: probability of the compression.
        quality: the lowest and the highest quality, 1 to 100.
        subsampled: probability that chroma has half the resolution (4:2:0), or else all (4:4:4).
    """

    prob: Probability = 1.0
    quality: Annotated[tuple[Quality, Quality], _Pair, AfterValidator(_ordered)] = (30, 95)
    subsampled: Probability = 1.0


class FirstPass(Table):
    """Blur, resize, noise, JPEG, in this order.  Resize factors are relative to HR.

    Attributes:
        prob: probability of the pass.
        blur, resize, noise, jpeg: the steps.
    """

    prob: Probability = 1.0
    blur: BlurTable = BlurTable()
    resize: ResizeTable = ResizeTable()
    noise: NoiseTable = NoiseTable()
    jpeg: JpegTable = JpegTable()


class SecondBlur(BlurTable):
    prob: Probability = 0.8
    sigma: Above = (0.2, 1.5)


class SecondResize(ResizeTable):
    up: Probability = 0.3
    down: Probability = 0.4
    range: Around = (0.3, 1.2)


class SecondNoise(NoiseTable):
    sigma: Range = (1.0, 25.0)
    scale: Range = (0.05, 2.5)


class SecondPass(Table):
    """Blur, resize, noise, in this order.  Resize factors are relative to LR.

    Attributes:
        prob: probability of the pass.
        blur, resize, noise: the steps.
    """

    prob: Probability = 1.0
    blur: SecondBlur = SecondBlur()
    resize: SecondResize = SecondResize()
    noise: SecondNoise = SecondNoise()


class FinalPass(Table):
    """Resize to the size of LR and a sinc filter, before or after JPEG, with equal probability.

    Attributes:
        sinc: probability of the sinc filter.
        size: side of its kernel in pixels, odd.
        jpeg: the compression.
    """

    sinc: Probability = 0.8
    size: Size = (7, 21)
    jpeg: JpegTable = JpegTable()


class DegradeTable(Table):
    """How LR images are made from HR: two passes and a final one.

    The structure and the defaults are those of "Real-ESRGAN: Training Real-World Blind
    Super-Resolution with Pure Synthetic Data" (ICCVW 2021) and of the options that were published
    with it, except that resizes are antialiased and that JPEG is the real codec.

    Attributes:
        prob: probability that a sample is degraded; LR of the others is made as MATLAB's imresize
            does.
        first, second, final: the passes.
    """

    prob: Probability = 1.0
    first: FirstPass = FirstPass()
    second: SecondPass = SecondPass()
    final: FinalPass = FinalPass()
