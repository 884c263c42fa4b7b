"""PSNR and SSIM against independent implementations of their definitions."""

import numpy as np
import pytest

from espan.errors import EspanError
from espan.evaluation import luma, psnr, ssim


def noisy_pair(height: int, width: int, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image with some noise, and the same image with more noise."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width) * 2)[..., None] % 256
    image = ramp + rng.normal(0, 5, (height, width, channels))
    worse = image + rng.normal(0, 8, image.shape)
    return tuple(np.clip(np.rint(x), 0, 255).astype(np.uint8) for x in (worse, image))  # type: ignore[return-value]


def direct_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM pixel by pixel, from the definition, with a two-dimensional window."""
    grid = np.arange(-5, 6)
    window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    scores = []
    for c in range(a.shape[2]):
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p = a[y : y + 11, x : x + 11, c].astype(float)
                q = b[y : y + 11, x : x + 11, c].astype(float)
                mp, mq = (window * p).sum(), (window * q).sum()
                vp = (window * (p - mp) ** 2).sum()
                vq = (window * (q - mq) ** 2).sum()
                cov = (window * (p - mp) * (q - mq)).sum()
                c1, c2 = 2.55**2, 7.65**2
                scores.append(
                    (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
                )
    return float(np.mean(scores))


@pytest.mark.parametrize("border", [0, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_equals_its_definition(border: int, channels: int) -> None:
    sr, hr = noisy_pair(31, 26, channels)
    a, b = (x[border : 31 - border, border : 26 - border].astype(float) for x in (sr, hr))
    expected = 20 * np.log10(255) - 10 * np.log10(np.square(a - b).sum() / a.size)
    assert psnr(sr, hr, border=border) == pytest.approx(expected, abs=1e-10)


def test_psnr_of_a_known_error() -> None:
    hr = np.full((12, 15, 3), 100, np.uint8)
    assert psnr(hr + 1, hr, border=4) == pytest.approx(48.1308036, abs=1e-6)
    assert psnr(hr, hr + 1, border=4) == psnr(hr + 1, hr, border=4)
    black, white = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    assert psnr(black, white, border=4) == 0


@pytest.mark.parametrize(("border", "channels"), [(0, 3), (4, 3), (3, 1)])
def test_ssim_equals_its_definition(border: int, channels: int) -> None:
    sr, hr = noisy_pair(23, 28, channels)
    a, b = (x[border : 23 - border, border : 28 - border] for x in (sr, hr))
    assert ssim(sr, hr, border=border) == pytest.approx(direct_ssim(a, b), abs=1e-10)
    assert ssim(sr, hr, border=border) == pytest.approx(ssim(hr, sr, border=border), abs=1e-12)


def test_against_torchmetrics() -> None:
    """The values equal torchmetrics' where both compute the same: inside, before the mean."""
    torch = pytest.importorskip("torch")
    image = pytest.importorskip("torchmetrics.functional.image")
    sr, hr = noisy_pair(40, 50)
    a, b = (torch.from_numpy(x).permute(2, 0, 1)[None].to(torch.float64) for x in (sr, hr))
    _, scores = image.structural_similarity_index_measure(
        a, b, data_range=255.0, return_full_image=True
    )
    assert ssim(sr, hr, border=0) == pytest.approx(scores[..., 5:-5, 5:-5].mean().item(), abs=1e-9)
    theirs = image.peak_signal_noise_ratio(a, b, data_range=255.0).item()
    assert psnr(sr, hr, border=0) == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("y_channel", [False, True])
def test_identical_images(y_channel: bool) -> None:
    _, hr = noisy_pair(20, 21)
    assert psnr(hr, hr.copy(), border=2, y_channel=y_channel) == float("inf")
    assert ssim(hr, hr.copy(), border=2, y_channel=y_channel) == pytest.approx(1, abs=1e-12)


def test_pixels_in_the_border_are_ignored() -> None:
    sr, hr = noisy_pair(30, 33)
    changed = sr.copy()
    changed[:4], changed[-4:], changed[:, :4], changed[:, -4:] = 0, 255, 255, 0
    for metric in (psnr, ssim):
        assert metric(changed, hr, border=4) == metric(sr, hr, border=4)
        assert metric(changed, hr, border=3) != metric(sr, hr, border=3)


def test_luma_follows_bt601() -> None:
    colours = [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]
    known = [16, 235, 81.481, 144.553, 40.966]
    image = np.array([colours], np.uint8)
    assert luma(image)[0, :, 0] == pytest.approx(known, abs=1e-9)
    gray = np.array([[[0], [255]]], np.uint8)
    assert luma(gray)[0, :, 0] == pytest.approx([16, 235], abs=1e-9)


def test_luma_metrics() -> None:
    sr, hr = noisy_pair(25, 30)
    a, b = luma(sr[4:-4, 4:-4]), luma(hr[4:-4, 4:-4])
    expected = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    assert psnr(sr, hr, border=4, y_channel=True) == pytest.approx(expected, abs=1e-10)
    assert ssim(sr, hr, border=4, y_channel=True) == pytest.approx(direct_ssim(a, b), abs=1e-10)


def test_the_smallest_images() -> None:
    sr, hr = noisy_pair(19, 19)
    assert ssim(sr, hr, border=4) == pytest.approx(
        direct_ssim(sr[4:-4, 4:-4], hr[4:-4, 4:-4]), abs=1e-10
    )
    with pytest.raises(EspanError, match=r"18 x 19 pixels.*border of 4.*11"):
        ssim(sr[:, 1:], hr[:, 1:], border=4)
    assert np.isfinite(psnr(sr[:9, :9], hr[:9, :9], border=4))
    with pytest.raises(EspanError, match="too few"):
        psnr(sr[:8, :9], hr[:8, :9], border=4)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_arguments(metric) -> None:  # type: ignore[no-untyped-def]
    sr, hr = noisy_pair(20, 20)
    with pytest.raises(EspanError, match=r"\(20, 19, 3\)"):
        metric(sr[:, 1:], hr, border=0)
    with pytest.raises(EspanError, match="float64"):
        metric(sr / 255, hr, border=0)
    with pytest.raises(EspanError, match="uint16"):
        metric(sr, hr.astype(np.uint16), border=0)
    with pytest.raises(EspanError, match=r"\(20, 20\)"):
        metric(sr[..., 0], hr[..., 0], border=0)
    with pytest.raises(EspanError, match=r"\(20, 20, 2\)"):
        metric(sr[..., :2], hr[..., :2], border=0)
    with pytest.raises(EspanError, match="-1"):
        metric(sr, hr, border=-1)
