"""Static HDR metadata: the display on which a video was graded, and how bright it gets."""

from __future__ import annotations

import struct
from collections.abc import Mapping

DYNAMIC = {
    "DYNAMIC_HDR_PLUS": "HDR10+",
    "DOVI_METADATA": "Dolby Vision",
    "DOVI_RPU_BUFFER": "Dolby Vision",
    "DYNAMIC_HDR_VIVID": "HDR Vivid",
}


def encoder_options(codec: str, side_data: Mapping[str, bytes]) -> dict[str, str] | None:
    """The options that make an encoder write the metadata; None if it cannot.

    x265 and x264 count chromaticities in 0.00002 and luminances in 0.0001 candelas per square
    metre; SVT-AV1 takes the numbers themselves.
    """
    display, light = _display(side_data), _light(side_data)
    if display is None and light is None:
        return {}
    if codec not in ("libx265", "libx264", "libsvtav1"):
        return None
    fine = (1.0, 1.0) if codec == "libsvtav1" else (50000.0, 10000.0)
    form = "{:.5f}" if codec == "libsvtav1" else "{:.0f}"
    parameters = {}
    if display is not None:
        chromaticities, luminances = display
        points = [
            ",".join(form.format(fine[0] * value) for value in chromaticities[i : i + 2])
            for i in range(0, 8, 2)
        ]
        minimum, maximum = (form.format(fine[1] * value) for value in luminances)
        red, green, blue, white = points
        parameters["display"] = f"G({green})B({blue})R({red})WP({white})L({maximum},{minimum})"
    if light is not None:
        parameters["light"] = f"{light[0]},{light[1]}"
    option, names = {
        "libx265": ("x265-params", {"display": "master-display", "light": "max-cll"}),
        "libx264": ("x264-params", {"display": "mastering-display", "light": "cll"}),
        "libsvtav1": ("svtav1-params", {"display": "mastering-display", "light": "content-light"}),
    }[codec]
    return {option: ":".join(f"{names[key]}={value}" for key, value in parameters.items())}


def _display(side_data: Mapping[str, bytes]) -> tuple[list[float], list[float]] | None:
    """Chromaticities of red, green, blue and white, and the least and greatest luminance.

    The layout is that of FFmpeg's AVMasteringDisplayMetadata: ten fractions and two flags.
    """
    data = side_data.get("MASTERING_DISPLAY_METADATA", b"")
    if len(data) < struct.calcsize("22i"):
        return None
    numbers = struct.unpack_from("22i", data)
    if not all(numbers[20:22]) or not all(numbers[1:20:2]):
        return None
    values = [numbers[i] / numbers[i + 1] for i in range(0, 20, 2)]
    return values[:8], values[8:]


def _light(side_data: Mapping[str, bytes]) -> tuple[int, int] | None:
    """The brightest pixel and the brightest frame average, in candelas per square metre."""
    data = side_data.get("CONTENT_LIGHT_LEVEL", b"")
    if len(data) < struct.calcsize("2I"):
        return None
    brightest, average = struct.unpack_from("2I", data)
    return (brightest, average) if brightest or average else None
