"""The pixel formats of FFmpeg, and the layouts in which espan reads and writes their frames."""

from __future__ import annotations

from collections.abc import Iterable

from av import VideoFormat

from espan.video.layout import BITS, LAYOUTS, Layout


def layout_of(name: str) -> Layout:
    """The layout that holds every sample of a pixel format, without its alpha.

    It is that of the format itself if that has whole planes.  `VideoFrame.reformat` converts others
    to it without loss, except chroma at a quarter of the width, which is interpolated to a half.
    """
    name = name.replace("yuvj", "yuv")  # full range, which `Colour` records
    if name in LAYOUTS:
        return LAYOUTS[name]
    form = VideoFormat(name, 64, 64)
    colours = [component for component in form.components if not component.is_alpha]
    deepest = max(component.bits for component in colours)
    bits = next((bits for bits in BITS if bits >= deepest), 16)
    if form.is_rgb or form.has_palette or form.is_bayer or name.startswith("xyz"):
        return _find(bits, rgb=True)
    if len(colours) == 1:
        return _find(bits, planes=1)
    return _find(bits, half_width=form.chroma_width() < 64, half_height=form.chroma_height() < 64)


def _find(
    bits: int,
    *,
    planes: int = 3,
    rgb: bool = False,
    half_width: bool = False,
    half_height: bool = False,
) -> Layout:
    wanted = (bits, planes, rgb, half_width, half_height)
    return next(
        each
        for each in LAYOUTS.values()
        if (each.bits, each.planes, each.rgb, each.half_width, each.half_height) == wanted
    )


def has_alpha(name: str) -> bool:
    form = VideoFormat(name, 64, 64)
    return any(component.is_alpha for component in form.components) and not form.has_palette


def closest(source: Layout, names: Iterable[str]) -> tuple[str, Layout] | None:
    """The pixel format, of those an encoder takes, that keeps most of `source`, and its layout.

    RGB stays RGB if it can, then becomes 4:4:4.  Gray becomes 4:2:0, because few players decode
    gray.  More bits or chroma than `source` has are a last resort.
    """
    gray = source.planes == 1
    half = (source.half_width or gray, source.half_height or gray)
    best: tuple[tuple[int, ...], str, Layout] | None = None
    for name in names:
        # Formats without components, such as "cuda", are frames in a GPU's memory.
        if name.startswith("yuvj") or has_alpha(name) or not VideoFormat(name, 64, 64).components:
            continue
        layout = layout_of(name)
        if layout.planes == 1 or (layout.rgb and not source.rgb):
            continue
        lost = [got and not had for got, had in zip(_half(layout), half, strict=True)]
        added = [had and not got for got, had in zip(_half(layout), half, strict=True)]
        cost = (
            source.rgb and not layout.rgb,
            max(0, source.bits - layout.bits),
            sum(lost),
            max(0, layout.bits - source.bits),
            sum(added),
            layout.name != name,
        )
        key = tuple(map(int, cost))
        if best is None or key < best[0]:
            best = (key, name, layout)
    return None if best is None else best[1:]


def _half(layout: Layout) -> tuple[bool, bool]:
    return layout.half_width, layout.half_height
