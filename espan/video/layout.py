"""How a frame's samples lie in memory: which planes, how many bits, at which chroma resolution."""

from __future__ import annotations

from dataclasses import dataclass

BITS = (8, 9, 10, 12, 14, 16)  # those for which FFmpeg has pixel formats


@dataclass(frozen=True)
class Layout:
    """A pixel format of whole planes, little-endian: one of gray, three of Y, U, V or of G, B, R.

    Attributes:
        name: FFmpeg's name of the pixel format.
        bits: of each sample; samples of more than 8 bits take two bytes.
        planes: 1 or 3.
        rgb: whether the planes are green, blue and red.
        half_width, half_height: whether chroma has half the resolution.
    """

    name: str
    bits: int
    planes: int = 3
    rgb: bool = False
    half_width: bool = False
    half_height: bool = False

    def shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """The height and width of each plane of a frame."""
        rows = (height + 1) // 2 if self.half_height else height
        columns = (width + 1) // 2 if self.half_width else width
        return [(height, width), (rows, columns), (rows, columns)][: self.planes]


def _known() -> dict[str, Layout]:
    layouts = []
    for bits in BITS:
        end = "" if bits == 8 else f"{bits}le"
        layouts.append(Layout(f"gray{end}", bits, planes=1))
        layouts.append(Layout(f"gbrp{end}", bits, rgb=True))
        for chroma, half_width, half_height in (
            ("444", False, False),
            ("440", False, True),
            ("422", True, False),
            ("420", True, True),
        ):
            name = f"yuv{chroma}p{end}"
            layouts.append(Layout(name, bits, half_width=half_width, half_height=half_height))
    return {layout.name: layout for layout in layouts}


LAYOUTS = _known()
