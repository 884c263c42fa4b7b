"""Conversion between the samples of a frame and RGB, in fp32: BT.601, 709, 2020 and others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from espan.errors import EspanError
from espan.video.chroma import double, halve
from espan.video.layout import Layout

# The weights of red and blue in luma, by ITU-T H.273's number of the matrix, which FFmpeg uses.
RGB, BT709, UNSPECIFIED, BT601 = 0, 1, 2, 6
_WEIGHTS = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.601 with 625 lines
    BT601: (0.299, 0.114),  # with 525 lines
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020
}
_HDR = {16: "PQ", 18: "HLG"}
# On a CPU a frame is converted in strips of so many rows, which stay in the cache.  From RGB to
# 4:2:0, 2560x1440 takes 35 ms of processor time, against 64 to 110 ms at once, and 20 ms with
# swscale and the change of layout that it needs.  Measured on an AMD EPYC that was not idle.
_STRIP = 64


@dataclass(frozen=True)
class Colour:
    """What samples mean, in the numbers of ITU-T H.273.

    Attributes:
        matrix: between Y, U, V and RGB.
        full_range: whether samples use all values, not 16 to 235 (chroma 240) of 8 bits.
        primaries, transfer: carried over; the network sees RGB as it is encoded.
        chroma: position of chroma with half the resolution: "left", "center", "topleft" or "top".
    """

    matrix: int
    full_range: bool
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    chroma: str = "left"

    def __post_init__(self) -> None:
        if self.matrix != RGB and self.matrix not in _WEIGHTS:
            raise EspanError(
                f"the video's colours use matrix {self.matrix} of ITU-T H.273; espan converts "
                "BT.601, BT.709, BT.2020 (not constant luminance), SMPTE 240M, FCC and RGB"
            )

    @property
    def hdr(self) -> str | None:
        """The name of the HDR transfer function, if it is one."""
        return _HDR.get(self.transfer)

    @property
    def cosited(self) -> tuple[bool, bool]:
        """Whether chroma lies on the first luma sample, vertically and horizontally."""
        return self.chroma.startswith("top"), self.chroma.endswith("left")


def assumed_matrix(width: int, height: int) -> int:
    """What players assume where a file does not say it: BT.601 up to 576 lines, else BT.709."""
    return BT709 if width >= 1280 or height > 576 else BT601


def to_rgb(planes: Sequence[Tensor], layout: Layout, colour: Colour) -> Tensor:
    """Planes of samples -> (3, H, W) in 0-1: bytes from 8 bits, else fp32.

    Values outside of 0-1, which limited range can encode, are clamped.
    """
    scale, offset = _luma_range(layout, colour)
    values = [plane.to(torch.float32) for plane in planes]
    if layout.planes == 1 or layout.rgb:
        values = [value.sub_(offset).div_(scale) for value in values]
        red, green, blue = values * 3 if layout.planes == 1 else (values[i] for i in (2, 0, 1))
    else:
        luma = values[0].sub_(offset).div_(scale)
        neutral, reach = _chroma_range(layout, colour)
        chroma = torch.stack(values[1:]).sub_(neutral).div_(reach)
        height, width = luma.shape
        vertical, horizontal = colour.cosited
        if layout.half_height:
            chroma = double(chroma, -2, height, cosited=vertical)
        if layout.half_width:
            chroma = double(chroma, -1, width, cosited=horizontal)
        kr, kb = _WEIGHTS[colour.matrix]
        kg = 1 - kr - kb
        cb, cr = chroma
        red = luma.add(cr, alpha=2 * (1 - kr))
        green = luma.add(cb, alpha=-2 * kb * (1 - kb) / kg).add_(cr, alpha=-2 * kr * (1 - kr) / kg)
        blue = luma.add(cb, alpha=2 * (1 - kb))
    rgb = torch.stack([red, green, blue]).clamp_(0, 1)
    return rgb.mul_(255).round_().to(torch.uint8) if layout.bits == 8 else rgb


def from_rgb(rgb: Tensor, layout: Layout, colour: Colour) -> list[Tensor]:
    """(3, H, W), bytes or in 0-1 -> planes of samples, uint8 or uint16, rounded to nearest."""
    _, height, width = rgb.shape
    dtype = torch.uint8 if layout.bits == 8 else torch.uint16
    shapes = layout.shapes(height, width)
    planes = [torch.empty(shape, dtype=dtype, device=rgb.device) for shape in shapes]
    step = _STRIP if rgb.device.type == "cpu" else height + height % 2
    unit = 1 / 255 if rgb.dtype == torch.uint8 else 1
    for top in range(0, height, step):
        # Vertically cosited chroma reads the row above, which makes a row of chroma to leave out.
        above = 2 if layout.half_height and colour.cosited[0] and top else 0
        part = rgb[:, top - above : top + step].to(torch.float32)
        results = _values(part, unit, layout, colour)
        for plane, (values, halved) in zip(planes, results, strict=True):
            start, rows = (top // 2, values[above // 2 :]) if halved else (top, values[above:])
            target = plane[start : start + rows.shape[0]]
            target.copy_(rows if dtype == torch.uint8 else rows.to(torch.int32))
    return planes


def _values(rgb: Tensor, unit: float, layout: Layout, colour: Colour) -> list[tuple[Tensor, bool]]:
    """fp32 values of each plane, to be truncated; and whether it has half the rows.

    `rgb` lies in 0 to 1 / unit.
    """
    scale, offset = _luma_range(layout, colour)
    scale *= unit
    top = 2**layout.bits - 0.51  # 0.5 was added, so that truncation rounds
    if layout.rgb:
        return [(rgb[i].mul(scale).add_(offset + 0.5).clamp_(0, top), False) for i in (1, 2, 0)]
    kr, kb = _WEIGHTS[colour.matrix]
    weights = (kr, 1 - kr - kb, kb)
    planes = [(_weighted(rgb, weights, scale).add_(offset + 0.5).clamp_(0, top), False)]
    vertical, horizontal = colour.cosited
    small = rgb
    if layout.half_height:
        small = halve(small, -2, cosited=vertical)
    if layout.half_width:
        small = halve(small, -1, cosited=horizontal)
    neutral, reach = _chroma_range(layout, colour)
    for channel in (2, 0):  # Cb = (B - Y) / (2 (1 - Kb)), Cr = (R - Y) / (2 (1 - Kr))
        ratio = unit * reach / (2 * (1 - weights[channel]))
        factors = [(float(i == channel) - weight) for i, weight in enumerate(weights)]
        values = _weighted(small, factors, ratio).add_(neutral + 0.5).clamp_(0, top)
        planes.append((values, layout.half_height))
    return planes


def _weighted(rgb: Tensor, weights: Sequence[float], scale: float) -> Tensor:
    """Not a matrix product, which a GPU may compute in TF32."""
    total = rgb[0] * (scale * weights[0])
    return total.add_(rgb[1], alpha=scale * weights[1]).add_(rgb[2], alpha=scale * weights[2])


def _luma_range(layout: Layout, colour: Colour) -> tuple[float, float]:
    """The distance between the samples of 0 and of 1, and the sample of 0."""
    if colour.full_range:
        return 2**layout.bits - 1, 0
    step = 2 ** (layout.bits - 8)
    return 219 * step, 16 * step


def _chroma_range(layout: Layout, colour: Colour) -> tuple[float, float]:
    """The sample of no colour, and the distance between the samples of -0.5 and of 0.5."""
    neutral = 2 ** (layout.bits - 1)
    return neutral, 2**layout.bits - 1 if colour.full_range else 224 * 2 ** (layout.bits - 8)
