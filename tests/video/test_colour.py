"""Conversion between samples and RGB, against the formulas of the standards in fp64."""

import numpy as np
import pytest
import torch

import espan.video.colour
from espan.errors import EspanError
from espan.video.colour import Colour, assumed_matrix, from_rgb, to_rgb
from espan.video.layout import LAYOUTS

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
each_matrix = pytest.mark.parametrize("matrix", sorted(WEIGHTS))
each_range = pytest.mark.parametrize("full", [False, True])
each_depth = pytest.mark.parametrize("bits", [8, 10, 12])


def expected_rgb(y, u, v, matrix, full, bits):
    """R, G, B in fp64, by the matrix whose inverse ITU-T H.273 defines."""
    kr, kb = WEIGHTS[matrix]
    kg = 1 - kr - kb
    forward = np.array(
        [
            [kr, kg, kb],
            [-kr / (2 * (1 - kb)), -kg / (2 * (1 - kb)), 0.5],
            [0.5, -kg / (2 * (1 - kr)), -kb / (2 * (1 - kr))],
        ]
    )
    n = 2.0 ** (bits - 8)
    if full:
        ypbpr = np.stack([y, u - 128 * n, v - 128 * n]) / (256 * n - 1)
    else:
        ypbpr = np.stack([(y - 16 * n) / 219, (u - 128 * n) / 224, (v - 128 * n) / 224]) / n
        ypbpr[0] = (y - 16 * n) / (219 * n)
    return np.einsum("ij,j...->i...", np.linalg.inv(forward), ypbpr)


def expected_samples(rgb, matrix, full, bits):
    """Y, Cb, Cr in fp64, not rounded."""
    kr, kb = WEIGHTS[matrix]
    r, g, b = rgb
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / 2 / (1 - kb), (r - y) / 2 / (1 - kr)
    n = 2.0 ** (bits - 8)
    if full:
        top = 256 * n - 1
        return np.stack([y * top, cb * top + 128 * n, cr * top + 128 * n])
    return n * np.stack([219 * y + 16, 224 * cb + 128, 224 * cr + 128])


def name(chroma, bits):
    return f"yuv{chroma}p" + ("" if bits == 8 else f"{bits}le")


@each_matrix
@each_range
@each_depth
def test_to_rgb(matrix, full, bits):
    samples = np.random.default_rng(0).integers(0, 2**bits, (3, 40, 50))
    planes = [torch.from_numpy(p.astype(np.uint8 if bits == 8 else np.uint16)) for p in samples]
    rgb = to_rgb(planes, LAYOUTS[name(444, bits)], Colour(matrix, full)).numpy()
    exact = expected_rgb(*samples.astype(float), matrix, full, bits).clip(0, 1)
    if bits == 8:
        assert rgb.dtype == np.uint8
        assert np.abs(rgb - 255 * exact).max() < 0.5001  # the nearest byte
    else:
        assert np.abs(rgb - exact).max() < 1e-6


@each_matrix
@each_range
@each_depth
def test_from_rgb(matrix, full, bits):
    generator = torch.Generator().manual_seed(0)
    rgb = torch.rand((3, 133, 50), generator=generator)
    planes = from_rgb(rgb, LAYOUTS[name(444, bits)], Colour(matrix, full))
    exact = expected_samples(rgb.double().numpy(), matrix, full, bits).clip(0, 2**bits - 1)
    for plane, values in zip(planes, exact, strict=True):
        # 0.5 is the rounding; fp32 has 24 bits for up to 12 and a few roundings.
        assert np.abs(plane.numpy() - values).max() < 0.5 + 2.0 ** (bits - 22)


@each_matrix
@each_range
def test_bytes_return_to_themselves(matrix, full):
    """Bytes of RGB, stored with 10 bits and read again, are the same."""
    rgb = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 70, 50), np.uint8))
    layout, colour = LAYOUTS["yuv444p10le"], Colour(matrix, full)
    again = to_rgb(from_rgb(rgb, layout, colour), layout, colour)
    assert torch.equal(again.mul(255).round().to(torch.uint8), rgb)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("form", ["gbrp", "gbrp10le", "gray", "gray10le"])
def test_rgb_and_gray(form, full):
    layout = LAYOUTS[form]
    samples = np.random.default_rng(0).integers(0, 2**layout.bits, (layout.planes, 9, 7))
    planes = [torch.from_numpy(p.astype(np.uint16)) for p in samples]
    n = 2 ** (layout.bits - 8)
    low, high = (0, 256 * n - 1) if full else (16 * n, 235 * n)
    exact = ((samples - low) / (high - low)).clip(0, 1)
    exact = exact[[2, 0, 1]] if layout.rgb else np.repeat(exact, 3, axis=0)
    rgb = to_rgb(planes, layout, Colour(0 if layout.rgb else 1, full))
    top = 255 if layout.bits == 8 else 1
    assert np.abs(rgb.numpy() - top * exact).max() < (0.5001 if layout.bits == 8 else 1e-6)
    if layout.rgb:
        again = from_rgb(rgb, layout, Colour(0, full))
        within = samples.clip(low, high)
        assert max(np.abs(a.numpy() - w).max() for a, w in zip(again, within, strict=True)) <= (
            1 if layout.bits == 8 and not full else 0  # 219 of 255 levels
        )


POSITIONS = {"left": (0.5, 0.0), "center": (0.5, 0.5), "topleft": (0.0, 0.0), "top": (0.0, 0.5)}


@pytest.mark.parametrize("chroma", POSITIONS)
@pytest.mark.parametrize("form", ["yuv420p16le", "yuv422p16le", "yuv440p16le"])
def test_chroma_is_where_it_lies(form, chroma):
    """A linear gradient of chroma is interpolated and averaged exactly, except near the edges.

    A shift of a quarter of a pixel would be an error of 60 levels.
    """
    layout = LAYOUTS[form]
    height, width = 35, 40
    down, right = POSITIONS[chroma]
    rows = np.arange((height + 1) // 2) * 2 + down if layout.half_height else np.arange(height)
    columns = np.arange(width // 2) * 2 + right if layout.half_width else np.arange(width)

    def gradients(rows, columns):
        return 25000 + 240 * rows + 250 * columns, 41000 - 240 * rows - 250 * columns

    u, v = gradients(rows[:, None], columns[None])
    y = np.full((height, width), 32000.0)
    planes = [torch.from_numpy(p.astype(np.uint16)) for p in (y, u, v)]
    colour = Colour(1, False, chroma=chroma)
    exact = expected_rgb(y, *gradients(*np.mgrid[:height, :width]), 1, False, 16)
    assert 0 < exact.min() < exact.max() < 1
    rgb = to_rgb(planes, layout, colour)
    assert np.abs(rgb.numpy() - exact)[..., 4:-4, 4:-4].max() < 1e-6
    back = from_rgb(torch.from_numpy(exact).float(), layout, colour)
    for plane, samples in zip(back, planes, strict=True):
        error = np.abs(plane.numpy().astype(float) - samples.numpy().astype(float))
        assert error[2:-2, 2:-2].max() <= 1


def test_strips_have_no_seams(monkeypatch):
    """Rows do not depend on the strip that they are in: here, of 10 rows."""
    monkeypatch.setattr(espan.video.colour, "_STRIP", 10)
    rgb = torch.rand((3, 150, 6), generator=torch.Generator().manual_seed(0))
    for form in ("yuv420p10le", "yuv444p", "gbrp"):
        for chroma in POSITIONS:
            layout = LAYOUTS[form]
            colour = Colour(0 if layout.rgb else 1, False, chroma=chroma)
            whole = from_rgb(rgb, layout, colour)
            for start in (2, 56):  # other strips
                part = from_rgb(rgb[:, start:], layout, colour)
                for a, b in zip(whole, part, strict=True):
                    rows = start // 2 if a.shape[0] < 150 else start
                    assert torch.equal(a[rows:][4:], b[4:])


def test_odd_sizes():
    layout, colour = LAYOUTS["yuv420p"], Colour(6, False)
    rgb = torch.full((3, 5, 7), 90, dtype=torch.uint8)
    planes = from_rgb(rgb, layout, colour)
    assert [tuple(p.shape) for p in planes] == layout.shapes(5, 7) == [(5, 7), (3, 4), (3, 4)]
    assert torch.equal(to_rgb(planes, layout, colour), rgb)


def test_values_out_of_range_are_clamped():
    layout = LAYOUTS["yuv444p"]
    planes = [torch.full((2, 2), value, dtype=torch.uint8) for value in (255, 128, 128)]
    assert (to_rgb(planes, layout, Colour(1, False)) == 255).all()


def test_unknown_matrix():
    with pytest.raises(EspanError, match=r"use matrix 8 of ITU-T H.273; espan converts BT.601"):
        Colour(8, False)


def test_assumed_matrix():
    assert [assumed_matrix(*size) for size in ((720, 576), (1280, 534), (1024, 768))] == [6, 1, 1]
