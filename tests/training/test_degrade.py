"""Degraded LR images: the steps, the crops, the experiments and the preview."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from espan.cli.commands import app
from espan.data import Crops, batches, image_in_memory, open_images
from espan.data.degrade import (
    Blur,
    Degradation,
    Jpeg,
    Noise,
    Resize,
    crop_region,
    degraded,
    draw,
    generator,
    run,
)
from espan.data.degrade_batch import run_batch
from espan.data.degrade_matrices import METHODS, blurring, resizing, separable
from espan.data.degrade_table import KINDS, DegradeTable
from espan.data.on_device import cut
from espan.errors import EspanError
from espan.imaging import Image, imresize, read_image, write_image
from espan.training import train as training
from espan.training.experiment import Experiment, from_data, parse, read
from espan.training.log import read_metrics
from espan.training.run import Run, Setup, reopen

STEPS = [
    *(Blur(kind, 9, (1.0, 2.0 if "aniso" in kind else 1.0), 0.5, 1.5) for kind in KINDS),
    Blur("sinc", 9, cutoff=1.5),
    *(Resize(method, factor) for method in METHODS for factor in (0.6, 1.0, 3.1)),
    *(Noise(kind, 2.0, gray, 7) for kind in ("gaussian", "poisson") for gray in (False, True)),
    Jpeg(50, True),
    Jpeg(50, False),
]
NONE = {"prob": 0.0}
NOTHING = {  # every step has a probability of 0
    "first": {"prob": 0.0},
    "second": {
        "blur": NONE,
        "resize": {"up": 0.0, "down": 0.0},
        "noise": {"gaussian": 0.0, "poisson": 0.0},
    },
    "final": {"sinc": 0.0, "jpeg": NONE},
}


def table(**keys) -> DegradeTable:
    return DegradeTable.model_validate(keys)


def photograph(height: int = 96, width: int = 120, seed: int = 0) -> np.ndarray:
    """Smooth noise with edges, (H, W, 3) uint8."""
    small = np.random.default_rng(seed).random((-(-height // 8), -(-width // 8), 3)) * 1.6 - 0.3
    pixels = (imresize(small, 8).clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[:height, :width])


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def shift(moved: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Rows and columns that a gray image was moved by, from a fit of its gradient."""
    gradients = [g[6:-6, 6:-6].ravel() for g in np.gradient(image)]
    error = (moved - image)[6:-6, 6:-6].ravel()
    return -np.linalg.lstsq(np.stack(gradients, 1), error, rcond=None)[0]


@pytest.fixture
def crops(photos: Path) -> Crops:
    images, _ = open_images([photos], scale=2, smallest=16)
    return Crops(images, patch=16, seed=5, degrade=DegradeTable())


# The steps


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_every_step_runs(step) -> None:
    hr = photograph()
    plain = run(hr, [Resize("area", 1.0)], (48, 60))
    result = run(hr, [step, Resize("area", 1.0)], (48, 60))
    assert result.shape == (48, 60, 3)
    assert result.dtype == np.uint8
    assert (difference(result, plain) > 0) == (step != Resize("area", 1.0))
    assert difference(result.mean((0, 1)), plain.mean((0, 1))) <= 4


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_is_imresize(scale: int) -> None:
    hr = photograph(96, 120) // 2 + 64  # imresize clips between its passes
    size = (96 // scale, 120 // scale)
    steps = [Blur("iso", 7, (0.01, 0.01)), Resize("bicubic", 1.0)]
    assert difference(run(hr, steps, size), imresize(hr, Fraction(1, scale))) <= 1


def test_area_is_the_mean_of_the_covered_pixels() -> None:
    hr = photograph(96, 120)
    mean = hr.reshape(48, 2, 60, 2, 3).mean((1, 3))
    assert difference(run(hr, [Resize("area", 1.0)], (48, 60)), mean + 0.5) <= 1
    np.testing.assert_allclose(resizing("area", 3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("factors", [(0.73,), (1.21,), (2.9, 0.81), (0.33,), (0.41, 1.7)])
def test_resizes_keep_the_centre(method, factors) -> None:
    hr = photograph(384, 384)
    clean = imresize(hr, Fraction(1, 4)).mean(2)
    steps = [Resize(method, factor) for factor in (*factors, 1.0)]
    found = shift(run(hr, steps, (96, 96)).mean(2), clean)
    assert np.abs(found).max() < 0.1
    moved = 0.8 * clean + 0.2 * np.roll(clean, 1, axis=0)  # by 0.2 pixels
    assert shift(moved, clean)[0] == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("blur", [s for s in STEPS if isinstance(s, Blur)], ids=str)
def test_a_blur_is_the_convolution_with_its_kernel(blur: Blur) -> None:
    kernel = blur.kernel
    assert kernel.sum() == pytest.approx(1)
    terms = separable(kernel)
    assert 255 * np.abs(sum(np.outer(*pair) for pair in terms) - kernel).sum() <= 0.5
    assert len(terms) == 1 or blur.kind != "iso"
    hr = photograph(20, 24)
    padded = np.pad(hr.astype(float), ((4, 4), (4, 4), (0, 0)), "symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), axis=(0, 1))
    expected = np.einsum("hwcij,ij->hwc", windows, kernel)
    assert difference(run(hr, [blur], (20, 24)), expected.clip(0, 255) + 0.5) <= 1


def test_blurs_of_axes_shorter_than_the_kernel() -> None:
    matrix = blurring(np.arange(1.0, 10), 3)
    np.testing.assert_allclose(matrix.sum(1), 45)


def test_an_elliptical_kernel_is_rotated() -> None:
    wide, tall = (Blur("aniso", 21, (3.0, 1.0), a).kernel for a in (0, math.pi / 2))
    np.testing.assert_allclose(wide, tall.T, atol=1e-12)
    x = np.arange(21) - 10
    assert (wide * x**2).sum() == pytest.approx(9, rel=0.05)
    assert (wide * x[:, None] ** 2).sum() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("gray", [False, True])
@pytest.mark.parametrize("value", [12, 128])
def test_the_size_of_noise(gray: bool, value: int) -> None:
    flat = np.full((200, 200, 3), value, np.uint8)
    gaussian = run(flat, [Noise("gaussian", 3.0, gray, 1)], (200, 200)).astype(float)
    assert gaussian.std() == pytest.approx(math.hypot(3, 1 / math.sqrt(12)), rel=0.02)
    poisson = run(flat, [Noise("poisson", 1.0, gray, 1)], (200, 200)).astype(float)
    assert poisson.mean() == pytest.approx(value, abs=0.1)
    assert poisson.std() == pytest.approx(math.sqrt(value * 255 / 256), rel=0.04)
    third = ((poisson - poisson.mean()) ** 3).mean() / poisson.std() ** 3
    assert third == pytest.approx(1 / math.sqrt(value), abs=0.05)
    for noisy in (gaussian, poisson):
        assert (noisy == noisy[..., :1]).all() == gray


def test_black_has_no_poisson_noise() -> None:
    noise = [Noise("poisson", 3.0, False, 1)]
    black = np.zeros((50, 50, 3), np.uint8)
    assert not run(black, noise, (50, 50)).any()
    faint = run(black + 1, noise, (50, 50))  # one photon
    assert faint.std() > 1


def test_jpeg_is_the_codec() -> None:
    pixels = photograph(41, 53)
    for jpeg, name in ((Jpeg(40, True), "4:2:0"), (Jpeg(90, False), "4:4:4")):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, "JPEG", quality=jpeg.quality, subsampling=name)
        expected = np.asarray(PIL.Image.open(file))
        assert difference(run(pixels, [jpeg], (41, 53)), expected) == 0


def test_gray_stays_gray() -> None:
    hr = np.repeat(photograph()[..., :1], 3, axis=2)
    steps = [
        Blur("sinc", 11, cutoff=2.0),
        Resize("bicubic", 1.3),
        Noise("poisson", 1.0, True, 3),
        Jpeg(50, True),
        Resize("bilinear", 1.0),
    ]
    result = run(hr, steps, (48, 60)).astype(int)
    assert np.ptp(result, axis=2).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 2)])
def test_small_images(size) -> None:
    hr = photograph(4 * size[0], 4 * size[1])
    for index in range(20):
        assert degraded(hr, DegradeTable(), 4, seed=0, index=index).shape == (*size, 3)


# Drawing


def test_draws_follow_from_seed_and_index_alone() -> None:
    first = [draw(DegradeTable(), generator(3, i), 4) for i in range(20)]
    assert first == [draw(DegradeTable(), generator(3, i), 4) for i in range(20)]
    assert len({repr(d) for d in first}) == 20
    assert first[0] != draw(DegradeTable(), generator(4, 0), 4)


def test_defaults_and_ranges() -> None:
    """The numbers of Real-ESRGAN's options, and that draws are within them."""
    t = DegradeTable()
    assert (t.first.blur.prob, t.first.blur.sinc, t.final.sinc) == (1, 0.1, 0.8)
    assert list(t.first.blur.kinds.values()) == [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
    assert (t.first.blur.sigma, t.second.blur.sigma) == ((0.2, 3), (0.2, 1.5))
    assert (t.first.resize.range, t.second.resize.range) == ((0.15, 1.5), (0.3, 1.2))
    assert (t.first.noise.sigma, t.second.noise.sigma) == ((1, 30), (1, 25))
    assert (t.first.noise.scale, t.second.noise.scale) == ((0.05, 3), (0.05, 2.5))
    assert t.first.jpeg.quality == t.final.jpeg.quality == (30, 95)

    counts = Counter()
    for index in range(2000):
        drawn = draw(t, generator(0, index), 4)
        first, resize, noise, jpeg = drawn.steps[:4]
        counts[first.kind] += 1
        assert first.size in range(7, 23, 2)
        if first.kind == "sinc":
            assert math.pi / 5 <= first.cutoff <= math.pi
        else:
            assert all(0.2 <= s <= 3 for s in first.sigma)
            assert (first.sigma[0] == first.sigma[1]) == first.kind.endswith("iso") or (
                "aniso" in first.kind
            )
        counts["up"] += resize.factor > 4
        counts["down"] += resize.factor < 4
        assert 0.15 * 4 <= resize.factor <= 1.5 * 4
        counts[resize.method] += 1
        counts[noise.kind] += 1
        counts["gray"] += noise.gray
        low, high = (1, 30) if noise.kind == "gaussian" else (0.05, 3)
        assert low <= noise.level <= high
        assert isinstance(jpeg, Jpeg)
        assert 30 <= jpeg.quality <= 95
        assert jpeg.subsampled
        counts["second blur"] += isinstance(drawn.steps[4], Blur)
        counts["last sinc"] += any(getattr(s, "kind", "") == "sinc" for s in drawn.steps[-2:])
        counts["JPEG at the end"] += isinstance(drawn.steps[-1], Jpeg)
        assert Resize in map(type, drawn.steps[-3:])
        assert all(0 <= n < 8 for n in drawn.phase)
    expected = {
        "sinc": 0.1, "iso": 0.405, "aniso": 0.225, "generalized_iso": 0.108, "plateau_aniso": 0.027,
        "up": 0.2, "down": 0.7, "area": 1 / 3, "gaussian": 0.5, "poisson": 0.5, "gray": 0.4,
        "second blur": 0.8, "last sinc": 0.8, "JPEG at the end": 0.5,
    }  # fmt: skip
    for name, part in expected.items():
        assert counts[name] / 2000 == pytest.approx(part, abs=0.04), name


def test_probabilities_of_zero() -> None:
    for index in range(50):
        drawn = draw(table(**NOTHING), generator(0, index), 2)
        assert all(isinstance(step, Resize) and step.factor == 1 for step in drawn.steps)
    assert draw(table(prob=0.0), generator(0, 0), 2) is None
    hr = photograph()
    clean = degraded(hr, table(prob=0.0), 2, seed=0, index=0)
    assert difference(clean, imresize(hr, Fraction(1, 2))) == 0


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[degrade]\nprobability = 1", "degrade.probability: unknown key 'probability'"),
        ("[degrade.third]", "degrade.third: unknown key 'third'"),
        ("[degrade]\nprob = 1.5", "degrade.prob: Input should be less than or equal to 1"),
        ("[degrade]\nprob = true", "degrade.prob: Input should be a valid number"),
        ("[degrade.first.blur]\nsigma = [3, 1]", "first number must not be above the second"),
        ("[degrade.first.blur]\nsigma = [0, 1]", "both numbers must be above 0"),
        ("[degrade.first.blur]\nsigma = 1", "degrade.first.blur.sigma: "),
        ("[degrade.first.blur]\nsize = [7, 12]", "both sizes must be odd"),
        ("[degrade.first.blur]\nkinds = { round = 1 }", "degrade.first.blur.kinds.round"),
        ("[degrade.first.blur]\nkinds = { iso = 0 }", "one of the kinds must have a frequency"),
        ("[degrade.second.resize]\nup = 0.7", "up and down are probabilities; their sum"),
        ("[degrade.second.resize]\nrange = [0.5, 0.9]", "1 must be between the two numbers"),
        ("[degrade.second.noise]\ngaussian = 0.6", "gaussian and poisson are probabilities"),
        ("[degrade.second]\njpeg = {}", "degrade.second.jpeg: unknown key 'jpeg'"),
        ("[degrade.final.jpeg]\nquality = [0, 95]", "greater than or equal to 1"),
    ],
)
def test_bad_tables(toml: str, message: str) -> None:
    text = Path(read_path("espan_x2_photo")).read_text()
    text = text[: text.index("[degrade]")] + toml + "\n" + text[text.index("[[stage]]") :]
    with pytest.raises(EspanError, match=r"mine\.toml: degrade") as error:
        parse(text, "mine.toml")
    assert message in str(error.value)


def read_path(name: str) -> Path:
    from espan.training.experiment import shipped

    return shipped()[name]


# Crops


def test_samples_do_not_depend_on_their_neighbours(crops: Crops) -> None:
    lr, hr = crops.batch(0, 12)
    for index in (7, 0, 11):
        one, same = crops.batch(index, 1)
        assert torch.equal(one[0], lr[index])
        assert torch.equal(same[0], hr[index])
    options = {"batch": 4, "first_step": 0, "steps": 3, "device": torch.device("cpu")}
    for workers in (0, 2):
        made = torch.cat([pair[0] for pair in batches(crops, workers=workers, **options)])
        assert torch.equal(made, lr)
    parts = [list(batches(crops, rank=r, world=2, **options)) for r in range(2)]
    joined = [torch.cat([parts[0][i][0], parts[1][i][0]]) for i in range(3)]
    assert torch.equal(torch.cat(joined), lr)


def test_hr_is_that_of_clean_crops(crops: Crops) -> None:
    clean = Crops(crops.images, patch=16, seed=5)
    (lr, hr), (clean_lr, clean_hr) = crops.batch(0, 8), clean.batch(0, 8)
    assert torch.equal(hr, clean_hr)
    assert (lr != clean_lr).flatten(1).any(1).all()
    never = Crops(crops.images, patch=16, seed=5, degrade=table(prob=0.0))
    assert torch.equal(never.batch(0, 8)[0], clean_lr)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("at", [(0, 0), (10, 20), (15, 26)])
def test_a_crop_is_that_of_the_whole_image(scale: int, at: tuple[int, int]) -> None:
    """Without noise and JPEG, whose numbers and blocks belong to the region.

    The kernels are symmetric, so that it makes no difference when borders are mirrored.
    """
    hr = photograph(40 * scale, 60 * scale)
    steps = (Blur("aniso", 7, (1.0, 2.0)), Resize("area", 1.0), Blur("sinc", 7, cutoff=1.8))
    whole = run(hr, steps, (40, 60))
    region, size, inside = crop_region(hr, Degradation(steps, (3, 5)), scale, *at, (25, 34))
    part = run(region, steps, size)[inside]
    y, x = at
    assert difference(part, whole[y : y + 25, x : x + 34]) <= 1


def test_crops_have_the_statistics_of_whole_images() -> None:
    hr = photograph(192, 192)
    t = read("espan_x2_photo").degrade
    crops = Crops([image_in_memory("one", hr, 2)], patch=48, seed=0, degrade=t)
    parts = np.stack([crops.sample(i)[0] for i in range(150)]).astype(float)
    wholes = np.stack([degraded(hr, t, 2, seed=0, index=i) for i in range(150)]).astype(float)
    roughness = [np.abs(np.diff(x, axis=2)).mean() for x in (parts, wholes)]
    assert roughness[0] == pytest.approx(roughness[1], rel=0.15)


def test_given_lr_is_not_degraded() -> None:
    image = dataclasses.replace(image_in_memory("a", photograph(), 2), lr_pixels=photograph(48, 60))
    with pytest.raises(EspanError, match=r"LR images are given; \[degrade\]"):
        Crops([image], patch=8, seed=0, degrade=DegradeTable())


@pytest.mark.parametrize("scale", [2, 4])
def test_batches_on_a_device_are_those_of_the_host(scale: int) -> None:
    """One level: the sums of fp32 may be in another order, and so may round to the next level.

    JPEG can make more of such a difference, in a few pixels.
    """
    images = [image_in_memory(str(i), photograph(200, 240 + i, i), scale) for i in range(3)]
    for t in (DegradeTable(), read("espan_x4_photo").degrade):
        crops = Crops(images, patch=24, seed=1, degrade=t)
        host = cut(crops, 0, 16, pin=False)
        device = cut(crops, 0, 16, pin=False, device=torch.device("cpu"))
        assert torch.equal(host.pixels, device.pixels)
        apart = (host.lr.int() - device.lr.int()).abs()
        assert (apart > 1).float().mean() < 1e-3
        assert apart.max() <= 8


def test_a_batch_of_unequal_samples() -> None:
    regions = [photograph(32, 48), photograph(64, 40, 1), photograph(24, 24, 2)]
    steps = [
        [Resize("area", 1.0)],
        [Blur("aniso", 9, (2.0, 1.0), 0.3), Resize("bicubic", 2.0), Noise("poisson", 1, True, 3),
         Jpeg(60, True), Blur("iso", 7, (1.0, 1.0)), Resize("bilinear", 1.0)],
        [Noise("gaussian", 5, False, 4), Resize("area", 1.0), Blur("sinc", 7, cutoff=2),
         Jpeg(80, False)],
    ]  # fmt: skip
    sizes = [(16, 24), (32, 20), (12, 12)]
    results = run_batch(regions, steps, sizes, torch.device("cpu"))
    for result, *sample in zip(results, regions, steps, sizes, strict=True):
        assert difference(result, run(*sample)) <= 1


# Experiments


def photo_experiment(**degrade) -> Experiment:
    data = {
        "validate_every": 4,
        "network": {"architecture": "c8d2k3x2", "init": "bilinear"},
        "optimizer": {"clip": 1.0, "average": 0.999},
        "degrade": degrade,
        "stage": [
            {
                "name": "one",
                "hr_patch": 24,
                "batch": 4,
                "lr": 1e-3,
                "decay": "cosine",
                "iterations": 8,
            }
        ],
    }
    return from_data(data, "photo")


@pytest.mark.parametrize("scale", [2, 4])
def test_the_experiments_for_photographs(scale: int) -> None:
    experiment = read(f"espan_x{scale}_photo")
    assert experiment.network.architecture is None
    assert experiment.scale == (None if scale == 2 else 4)
    samples = [draw(experiment.degrade, generator(0, i), scale) for i in range(1000)]
    assert samples.count(None) / 1000 == pytest.approx(0.5, abs=0.05)
    qualities = [s.quality for d in samples if d for s in d.steps if isinstance(s, Jpeg)]
    assert min(qualities) >= 40
    assert max(qualities) <= 95


def test_a_run_keeps_its_table(tmp_path: Path) -> None:
    experiment = photo_experiment(prob=0.7, second={"blur": {"kinds": {"iso": 1.0}}})
    Run(tmp_path / "run", experiment, Setup(data=(tmp_path,))).create()
    again = reopen(tmp_path / "run").experiment
    assert again == experiment
    assert again.degrade.second.blur.sigma == (0.2, 1.5)


def test_training_and_resuming(photos: Path, tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO())
    setup = Setup(data=(photos,), cpu=True, workers=1)
    run = tmp_path / "run"
    training.train(run, photo_experiment(), setup, console=quiet)
    metrics, weights = read_metrics(run), (run / "last.safetensors").read_bytes()
    assert metrics[-1]["psnr clean network"] > metrics[-1]["psnr network"]
    best = max(m["psnr network"] for m in metrics)
    record = json.loads((run / "experiment.json").read_text())
    assert record["degrade"]["first"]["jpeg"]["quality"] == [30, 95]
    assert torch.load(io.BytesIO(max((run / "states").iterdir()).read_bytes()[55:]))["best"] == best

    max((run / "states").iterdir()).unlink()  # the save after step 8
    training.resume(run, workers=0, console=quiet)
    assert read_metrics(run)[-1]["psnr network"] == metrics[-1]["psnr network"]
    assert (run / "last.safetensors").read_bytes() == weights


def test_given_lr_is_refused(photos: Path, tmp_path: Path) -> None:
    setup = Setup(data=(photos,), data_lr=tmp_path, cpu=True)
    with pytest.raises(EspanError, match=r"makes its LR images from HR \(\[degrade\]\)"):
        training.train(tmp_path / "run", photo_experiment(), setup)
    assert not (tmp_path / "run").exists()


# The preview


def test_preview(tmp_path: Path) -> None:
    photo, grid = tmp_path / "photo.png", tmp_path / "grid.png"
    write_image(photo, Image(photograph(300, 250)))
    command = ["prepare", "--preview", "espan_x4_photo", str(photo), "-o", str(grid)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert str(grid) in result.output
    picture = read_image(grid).pixels
    assert picture.shape[1] == 4 * (192 + 8) + 8
    assert difference(picture[8:200, 8:200], photograph(300, 250)[52:244, 28:220]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["smoke"], "smoke has no [degrade] table"),
        (["espan_x2_photo"], "give --scale"),
        (["espan_x2_photo", "--scale", "40"], "too small for a preview at x40"),
        (["espan_x4_photo", "--smallest", "9"], "--smallest"),
        (["no_such"], "no_such cannot be read"),
    ],
)
def test_previews_that_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    photo = tmp_path / "photo.png"
    write_image(photo, Image(photograph()))
    command = ["prepare", str(photo), "-o", str(tmp_path / "grid.png"), "--preview", *options]
    result = CliRunner().invoke(app, command)
    assert message in f"{result.exception} {result.output}"
    assert result.exit_code != 0
    assert not (tmp_path / "grid.png").exists()
