"""Cut-outs: colours under alpha 0 have no effect on visible pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PilImage

import espan
from espan import batch
from espan.alpha import extend_colour
from espan.imaging import Image, read_image, write_image
from espan.models import Architecture

# Random weights drive some images out of the plausible range.
pytestmark = pytest.mark.filterwarnings("ignore::espan.upscaling.RangeWarning")

DTYPES = [torch.uint8, torch.uint16, torch.float16, torch.float32, torch.float64]
COLOUR = (250, 240, 60)


def cut_out(channels: int, hidden: int = 0, size: int = 40) -> np.ndarray:
    """A disc of one colour with a soft edge; `hidden` is the colour under alpha 0."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.clip((size / 3 - np.hypot(y, x)) * 128, 0, 255).round().astype(np.uint8)
    pixels = np.full((size, size, channels), hidden, np.uint8)
    pixels[alpha > 0, : channels - 1] = COLOUR[: channels - 1]
    pixels[..., -1] = alpha
    return pixels


def as_dtype(pixels: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    values = torch.from_numpy(pixels)
    if dtype == torch.uint16:
        return torch.from_numpy(pixels.astype(np.uint16) * 257)
    return values if dtype == torch.uint8 else (values.to(dtype) / 255)


def exact(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.to(torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 3), (33, 65), (64, 128)])
@pytest.mark.parametrize("corner", [0, -1])
def test_one_visible_pixel_colours_the_whole_image(shape, channels, dtype, corner):
    pixels = as_dtype(np.zeros((*shape, channels), np.uint8), dtype)
    pixels[corner, corner] = as_dtype(np.array([200, 100, 50, 1], np.uint8)[-channels:], dtype)
    result = extend_colour(pixels)
    assert result.dtype == dtype
    assert torch.equal(exact(result[..., -1]), exact(pixels[..., -1]))
    expected = pixels[corner, corner, :-1].float().expand(*shape, -1)
    torch.testing.assert_close(result[..., :-1].float(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_visible_pixels_are_unchanged(dtype):
    pixels = as_dtype(np.random.default_rng(0).integers(0, 256, (37, 50, 4), np.uint8), dtype)
    pixels[::3, ::2, 3] = 0
    before = pixels.clone()
    result = extend_colour(pixels)
    assert torch.equal(exact(pixels), exact(before))
    visible = exact(pixels[..., 3]) > 0
    assert torch.equal(exact(result)[visible], exact(pixels)[visible])
    assert not torch.equal(exact(result), exact(pixels))


@pytest.mark.parametrize("alpha", [0, 1, 255])
def test_nothing_to_extend(alpha):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 9, 4), np.uint8))
    pixels[..., 3] = alpha
    assert extend_colour(pixels) is pixels


@pytest.mark.parametrize("offset", range(8))
def test_each_side_of_an_edge_has_its_own_colour(offset):
    """Red at the left, blue at the right, for any position of the edge on the pyramid's grids."""
    pixels = torch.zeros(64, 128, 4, dtype=torch.uint8)
    pixels[:, : 50 + offset] = torch.tensor([255, 0, 0, 255], dtype=torch.uint8)
    pixels[:, 80 + offset :] = torch.tensor([0, 0, 255, 255], dtype=torch.uint8)
    result = extend_colour(pixels).to(torch.int32)
    left, right = result[:, 50 + offset : 54 + offset], result[:, 76 + offset : 80 + offset]
    assert left[..., 0].min() > 200
    assert left[..., 2].max() < 50
    assert right[..., 2].min() > 200
    assert right[..., 0].max() < 50


@pytest.fixture
def upscaler(make_network):
    return espan.Upscaler(make_network(Architecture(8, (2,), scale=2)), device="cpu")


@pytest.mark.parametrize("kind", ["array", "PIL", "tensor", "file"])
@pytest.mark.parametrize("channels", [2, 4])
def test_hidden_colours_have_no_effect(kind, channels, upscaler, tmp_path: Path):
    def run(pixels: np.ndarray) -> np.ndarray:
        if kind == "array":
            return espan.upscale(pixels, upscaler)
        if kind == "PIL":
            return np.asarray(espan.upscale(PilImage.fromarray(pixels), upscaler))
        if kind == "tensor":
            batch_of_one = torch.from_numpy(pixels).permute(2, 0, 1)[None]
            return espan.upscale(batch_of_one, upscaler)[0].permute(1, 2, 0).numpy()
        write_image(tmp_path / "in.png", Image(pixels))
        job = batch.Job(tmp_path / "in.png", tmp_path / "out.png")
        (outcome,) = batch.run_all([job], upscaler, overwrite=True)
        assert outcome.error is None
        return read_image(job.target).pixels

    black, white = run(cut_out(channels, 0)), run(cut_out(channels, 255))
    np.testing.assert_array_equal(black, white)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [2, 4])
def test_no_dark_rim(channels, dtype, upscaler):
    """A disc of one colour is upscaled like a whole image of that colour."""
    pixels = cut_out(channels).astype(dtype) * dtype(np.iinfo(dtype).max // 255)
    flat = np.broadcast_to(pixels[20, 20, :-1], (*pixels.shape[:2], channels - 1)).copy()
    out = espan.upscale(pixels, upscaler)
    np.testing.assert_array_equal(out[..., :-1], espan.upscale(flat, upscaler))


def test_tiles_make_no_difference(make_network):
    network = make_network(Architecture(8, (2,), scale=2))
    pixels = cut_out(4, 0, 70)
    whole, tiled = (espan.upscale(pixels, network, device="cpu", tile=t) for t in (None, 16))
    assert np.abs(whole.astype(int) - tiled).max() <= 1


def test_opaque_colours_equal_the_image_without_alpha(upscaler):
    pixels = cut_out(4, 90)
    pixels[..., 3] = 255
    out = espan.upscale(pixels, upscaler)
    np.testing.assert_array_equal(out[..., :3], espan.upscale(pixels[..., :3].copy(), upscaler))
    assert (out[..., 3] == 255).all()
