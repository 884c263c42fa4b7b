"""The images that benchmarks/draw_training_images.py draws."""

import sys

import numpy as np
import pytest

from benchmarks import draw_training_images
from espan.imaging import Image, read_image, write_image

DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" width="9" height="8">
<circle cx="4" cy="4" r="3" fill="red" stroke="black"/></svg>"""


@pytest.mark.parametrize(("kind", "side"), [("collages", 1024), ("patterns", 768)])
def test_drawn_images(kind, side, tmp_path, monkeypatch):
    for folder in ("photographs", "drawings"):
        (tmp_path / folder).mkdir()
    gray = np.full((40, 50, 3), 128, np.uint8)
    write_image(tmp_path / "photographs/a.png", Image(gray))
    (tmp_path / "drawings/a.svg").write_text(DRAWING)
    (tmp_path / "drawings/damaged.svg").write_text("<svg")

    def draw(seed):
        inputs = ["photographs", "drawings"][: 2 if kind == "collages" else 1]
        arguments = [kind, *(str(tmp_path / name) for name in inputs), "-o", str(tmp_path / seed)]
        monkeypatch.setattr(sys, "argv", ["draw", *arguments, "--count", "1", "--seed", seed])
        draw_training_images.main()
        return read_image(tmp_path / seed / f"{kind[:-1]}_000.png").pixels

    first, second, other = (draw(seed) for seed in ("0", "0", "1"))
    assert first.shape == (side, side, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 100
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
