"""Resizing against MATLAB's results and a slow implementation of the formula."""

import math
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from espan.errors import EspanError
from espan.imaging import imresize, modcrop, read_image

SCALES = [
    Fraction(1, 4), Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), 0.37, 1, 1.5, 2, 3, 4,
]  # fmt: skip


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def slow_line(line: list[float], scale: float, size: int) -> list[float]:
    """Compute one output value at a time from all inputs within reach of the kernel."""
    n, stretch, result = len(line), min(scale, 1.0), []
    for i in range(size):
        centre = (i + 0.5) / scale - 0.5
        reach = math.ceil(2 / stretch) + 1
        total = weights = 0.0
        for j in range(math.floor(centre) - reach, math.floor(centre) + reach + 2):
            k = j % (2 * n)
            weight = cubic(stretch * (centre - j))
            total += weight * line[k if k < n else 2 * n - 1 - k]
            weights += weight
        result.append(total / weights)
    return result


def slow_resize(image: np.ndarray, scale: Fraction | float, top: int | None) -> np.ndarray:
    """Resize (H, W); values are rounded to 0 .. top after each pass unless top is None."""

    def vertical(plane: np.ndarray) -> np.ndarray:
        size = math.ceil(scale * plane.shape[0])
        columns = [slow_line(c.tolist(), float(scale), size) for c in plane.T]
        out = np.array(columns).T
        return out if top is None else np.clip(np.floor(out + 0.5), 0, top)

    return vertical(vertical(image.astype(float)).T).T


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2), (13, 18)])
def test_against_the_formula(size: tuple[int, int], scale: Fraction | float) -> None:
    rng = np.random.default_rng(1)
    image = rng.random(size)
    expected = slow_resize(image, scale, None)
    result = imresize(image, scale)
    assert result.dtype == np.float64
    assert result.shape == (math.ceil(scale * size[0]), math.ceil(scale * size[1]))
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [Fraction(1, 4), Fraction(1, 2), 0.37, 2, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rounding_after_each_pass(scale: Fraction | float, dtype: type) -> None:
    """Random pixels of full contrast, so that halves and values beyond the range occur."""
    top = int(np.iinfo(dtype).max)
    image = np.random.default_rng(2).integers(0, top + 1, (17, 22), dtype=dtype)
    image[:6, :6] = np.random.default_rng(3).choice([0, top], (6, 6))
    result = imresize(image, scale)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, slow_resize(image, scale, top))


def test_known_values() -> None:
    # A step, doubled: the taps at a quarter pixel are -9, 111, 29 and -3 of 128.
    step = np.array([[0], [0], [128], [128]], np.float64)
    expected = [[v] for v in (0, -3, -9, 26, 102, 137, 131, 128)]
    np.testing.assert_allclose(imresize(step, 2), np.repeat(expected, 2, axis=1), atol=1e-12)
    # Halved, a lone pixel of 1024 leaves the antialiased kernel: 1024 / 2 * cubic(distance / 2).
    line = np.zeros((16, 1))
    line[8] = 1024
    assert imresize(line, Fraction(1, 2))[2:7, 0].tolist() == [-12, 116, 444, -36, 0]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_a_constant_image_stays_constant(scale: Fraction | float, value: int) -> None:
    result = imresize(np.full((11, 6, 3), value, np.uint8), scale)
    assert np.all(result == value)


def test_channels_are_independent_and_layout_does_not_matter() -> None:
    image = np.random.default_rng(4).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    whole = imresize(image, Fraction(1, 3))
    for c in range(3):
        np.testing.assert_array_equal(whole[..., c], imresize(image[..., c], Fraction(1, 3)))
    view = np.asfortranarray(np.repeat(image, 2, axis=1))[:, ::2]
    np.testing.assert_array_equal(imresize(view, Fraction(1, 3)), whole)
    assert whole.flags.c_contiguous


def test_more_output_rows_than_one_block() -> None:
    image = np.random.default_rng(5).random((30, 3))
    np.testing.assert_allclose(imresize(image, 4), slow_resize(image, 4, None), atol=1e-12)


def test_the_output_size_of_a_fraction_is_exact() -> None:
    """(7 / 25) * 25 is 7.000000000000001 in floats."""
    image = np.zeros((25, 50), np.uint8)
    assert imresize(image, Fraction(7, 25)).shape == (7, 14)
    assert imresize(np.zeros((5, 6), np.uint8), Fraction(1, 4)).shape == (2, 2)


@pytest.mark.parametrize("scale", [0, -1, math.nan, math.inf])
def test_bad_scales(scale: float) -> None:
    with pytest.raises(EspanError, match="positive"):
        imresize(np.zeros((4, 4), np.uint8), scale)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4), np.int32), "int32"),
        (np.zeros((4, 4), bool), "bool"),
        (np.zeros(4, np.uint8), r"\(4,\)"),
        (np.zeros((0, 4), np.uint8), r"\(0, 4\)"),
    ],
)
def test_bad_arrays(image: np.ndarray, message: str) -> None:
    with pytest.raises(EspanError, match=message):
        imresize(image, 2)


def test_modcrop() -> None:
    image = np.arange(7 * 9 * 3).reshape(7, 9, 3)
    np.testing.assert_array_equal(modcrop(image, 4), image[:4, :8])
    assert modcrop(image[:4, :8], 4).shape == (4, 8, 3)
    with pytest.raises(EspanError, match="fewer than 8 pixels"):
        modcrop(image, 8)


@pytest.mark.parametrize("testset", ["Set5", "Set14"])
def test_test_sets_are_reproduced_bit_for_bit(testset: str) -> None:
    """Every LR image of the test sets was made by MATLAB from its HR image."""
    root = os.environ.get("ESPAN_TESTDATA")
    if not root:
        pytest.skip("ESPAN_TESTDATA does not say where the test sets are")
    files = sorted(Path(root, "testsets", testset, "HR").glob("*.png"))
    assert len(files) == {"Set5": 5, "Set14": 14}[testset]
    for file in files:
        hr = modcrop(read_image(file).pixels, 4)
        expected = read_image(file.parents[1] / "LRx4" / file.name).pixels
        result = imresize(hr, Fraction(1, 4))
        assert np.array_equal(np.broadcast_to(result, expected.shape), expected), file.name
