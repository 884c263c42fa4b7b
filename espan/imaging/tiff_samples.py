"""Which samples of a TIFF pixel are colour and which is alpha."""

import io
from collections.abc import Mapping
from typing import Any

import pyvips
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from espan.errors import ImageError

_PHOTOMETRIC, _EXTRA_SAMPLES = 262, 338
_ASSOCIATED_ALPHA = 1
_ALPHA = (1, 2, 999)  # associated, unassociated, and what Corel Draw wrote for the latter

# The number of colour samples by PhotometricInterpretation: gray (0, 1), RGB, CMYK, YCbCr.
_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4, 6: 3}

_INTERPRETATIONS = {
    (1, "uchar"): "b-w", (1, "ushort"): "grey16", (3, "uchar"): "srgb", (3, "ushort"): "rgb16",
}  # fmt: skip


def tiff_tags(data: bytes) -> Mapping[int, Any]:
    """The tags of the first page; none if they cannot be read."""
    try:
        header = data[: 16 if data[2:3] == b"+" or data[3:4] == b"+" else 8]
        tags = ImageFileDirectory_v2(header)
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # Pillow raises exceptions of many types on bad data, which libvips reports.
        return {}


def colour_and_alpha(
    name: str, image: pyvips.Image, tags: Mapping[int, Any]
) -> tuple[pyvips.Image, int]:
    """Colour and alpha of an image loaded by libvips, and the number of other samples, now dropped.

    libvips takes any sample after the colours for alpha.  By the TIFF specification, only samples
    that ExtraSamples declares as associated (1) or unassociated (2) alpha are.  libvips divides out
    associated alpha.

    Raises ImageError for associated alpha that libvips misreads: after another extra sample, or
    with CMYK.
    """
    colours: int = _COLOURS.get(tags.get(_PHOTOMETRIC, -1), image.bands)
    count = image.bands - colours
    if count <= 0:
        return image, 0
    kinds = tuple(tags.get(_EXTRA_SAMPLES, ()))[:count]
    if _ASSOCIATED_ALPHA in kinds and (kinds[0] != _ASSOCIATED_ALPHA or colours == 4):
        raise ImageError(
            f"{name}: holds premultiplied alpha after CMYK or another extra sample; expected "
            f"unassociated alpha, or alpha as the first extra sample of gray or RGB"
        )
    alpha = [i for i, kind in enumerate(kinds) if kind in _ALPHA]
    kept = image.extract_band(0, n=colours)
    if alpha:
        kept = kept.bandjoin(image.extract_band(colours + alpha[0]))
    interpretation = _INTERPRETATIONS.get((colours, image.format), image.interpretation)
    return kept.copy(interpretation=interpretation), count - len(alpha[:1])
