"""The demo works, and the picture in the README is what it makes."""

from pathlib import Path

import numpy as np
from PIL import Image

from examples import demo

COMMITTED = Path(__file__).parent.parent / "docs" / "images" / "side_by_side.jpg"


def test_picture_in_the_readme(tmp_path):
    demo.main(tmp_path)
    assert Image.open(tmp_path / "colosseum_x4.png").size == (1920, 1080)
    made, committed = (
        np.array(Image.open(path), dtype=np.int16)
        for path in (tmp_path / "side_by_side.jpg", COMMITTED)
    )
    # Rounding differs between CPUs, GPUs and JPEG libraries.
    assert np.abs(made - committed).mean() < 1
    assert COMMITTED.stat().st_size < 200_000
