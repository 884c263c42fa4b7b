"""Every supported kind of file can be upscaled with default options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image

from espan import batch
from espan.imaging import Image, read_image, write_image
from espan.models import Architecture
from espan.upscaling import Upscaler
from tests.image_files import by_pillow, photo

PILLOW_FORMATS = {"jpg": "JPEG", "tif": "TIFF"}

# Pixel formats by Pillow's names; with ";16", formats that only espan can write.
READABLE = {
    "png": ["1", "L", "LA", "P", "P+alpha", "RGB", "RGBA", "L;16", "LA;16", "RGB;16", "RGBA;16"],
    "tif": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "L;16", "LA;16", "RGB;16", "RGBA;16"],
    "bmp": ["1", "L", "P", "RGB", "RGBA"],
    "gif": ["1", "L", "P", "P+alpha", "RGB"],
    "webp": ["L", "P+alpha", "RGB", "RGBA"],
    "jpg": ["L", "RGB", "CMYK"],
}


def make(path: Path, kind: str) -> None:
    mode, _, depth = kind.partition(";")
    if depth or (kind == "RGBA" and path.suffix == ".bmp"):
        write_image(path, Image(photo(9, 12, len(mode), 65535 if depth else 255)))
        return
    image = PIL.Image.fromarray(photo(9, 12))
    if kind == "P+alpha":
        image = image.quantize(16)
        image.info["transparency"] = 2
    elif mode.endswith("A"):
        image = PIL.Image.fromarray(photo(9, 12, 4)).convert(mode)
    else:
        image = image.convert(mode)
    format = PILLOW_FORMATS.get(path.suffix[1:], path.suffix[1:].upper())
    path.write_bytes(by_pillow(image, format))


def test_every_kind_of_file_can_be_upscaled(tmp_path: Path, make_network) -> None:
    (tmp_path / "in").mkdir()
    expected = {}
    for suffix, kinds in READABLE.items():
        for kind in kinds:
            name = f"{suffix} {kind.replace(';', '-')}"
            make(tmp_path / "in" / f"{name}.{suffix}", kind)
            expected[f"{name}.{'png' if suffix == 'gif' else suffix}"] = (
                np.uint16 if kind.endswith("16") else np.uint8,
                "A" in kind.upper(),
            )
    upscaler = Upscaler(make_network(Architecture(8, (2,), scale=2)), device="cpu")
    outcomes = batch.run_all(
        batch.plan([tmp_path / "in"], tmp_path / "out"), upscaler, overwrite=False
    )
    assert [o.error for o in outcomes if o.error] == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(expected)
    for name, (dtype, alpha) in expected.items():
        pixels = read_image(tmp_path / "out" / name).pixels
        assert (pixels.shape[:2], pixels.dtype) == ((18, 24), dtype), name
        assert (pixels.shape[2] in (2, 4)) == alpha, name
