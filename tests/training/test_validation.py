"""Images to validate on, and given LR images: which are used, and that they fit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import espan
from espan.data import TrainingImage, image_in_memory
from espan.errors import EspanError
from espan.imaging import Image, imresize, read_image, write_image
from espan.training import steps as steps_module
from espan.training.data import _drawn
from espan.training.log import read_metrics
from espan.training.run import Setup
from espan.training.train import resume, train
from espan.training.validation import ValidationImage
from tests.training.test_train import quiet, recorded, same, state_of, stop_after


@pytest.fixture
def setup(photos: Path) -> Setup:
    return Setup(data=(photos,), hold_out=("1.png", "3.png"), cpu=True)


def test_a_validation_folder(tiny, setup, photos: Path, tmp_path: Path) -> None:
    lr = tmp_path / "lr"
    lr.mkdir()
    for path in photos.iterdir():
        pixels = read_image(path).pixels
        write_image(lr / path.name, Image(imresize(pixels, 0.5)))
    given = replace(setup, hold_out=(), validate=photos, validate_lr=lr)
    made = replace(setup, hold_out=(), validate=photos)
    for name, configured in (("given", given), ("made", made)):
        train(tmp_path / name, tiny(), configured, console=quiet())
    metrics = [read_metrics(tmp_path / name)[-1] for name in ("given", "made")]
    assert metrics[0]["psnr network"] == metrics[1]["psnr network"]
    assert espan.load(tmp_path / "made" / "best.safetensors").record["images"] == 5
    write_image(lr / "2.png", Image(np.zeros((31, 40, 3), np.uint8)))
    with pytest.raises(EspanError, match=r"stage one: .*lr/2.png is 40x31; x2 needs 40x32"):
        train(tmp_path / "no", tiny(), given, console=quiet())


def lr_of_scales(photos: Path, folder: Path, names: dict[str, int], *, suffix: bool) -> Path:
    """A folder of LR images in subfolders, one of each scale."""
    for name, scale in names.items():
        (folder / name).mkdir(parents=True)
        for path in photos.iterdir():
            small = imresize(read_image(path).pixels, Fraction(1, scale))
            target = f"{path.stem}x{scale}.png" if suffix else path.name
            write_image(folder / name / target, Image(small))
    return folder


@pytest.mark.parametrize(
    ("names", "suffix"),
    [(("X2", "X4"), True), pytest.param(("x2", "x4"), False, marks=pytest.mark.slow)],
)
def test_lr_images_of_every_scale(
    tiny, setup: Setup, photos: Path, tmp_path: Path, names: tuple[str, str], suffix: bool
) -> None:
    """A run on given LR images, made as espan makes them, is the run without them."""
    scales = dict(zip(names, (2, 4), strict=True))
    lr = lr_of_scales(photos, tmp_path / "lr", scales, suffix=suffix)
    made = replace(setup, hold_out=(), validate=photos)
    given = replace(made, data_lr=lr, validate_lr=lr)
    experiment = tiny({}, {"name": "two", "change": {"scale": 4}})
    for name, configured in (("made", made), ("given", given)):
        train(tmp_path / name, experiment, configured, console=quiet())
    one, other = (state_of(tmp_path / name) for name in ("made", "given"))
    assert same(one["network"], other["network"])
    assert one["best"] == other["best"]
    before = (tmp_path / "given" / "best.safetensors").read_bytes()
    resume(tmp_path / "given", console=quiet())
    assert (tmp_path / "given" / "best.safetensors").read_bytes() == before
    write_image(lr / names[1] / f"0{'x4' * suffix}.png", Image(np.zeros((16, 20, 3), np.uint8)))
    with pytest.raises(EspanError, match="not those that the run was started with"):
        resume(tmp_path / "given", console=quiet())


def test_lr_images_that_lack_a_scale(tiny, setup: Setup, photos: Path, tmp_path: Path) -> None:
    lr = lr_of_scales(photos, tmp_path / "lr", {"X2": 2, "X3": 3}, suffix=True)
    experiment = tiny({}, {"name": "two", "change": {"scale": 4}})
    message = r"stage two: .*lr has the folders X2, X3; one folder X4 with the LR images of x4"
    with pytest.raises(EspanError, match=message):
        train(tmp_path / "no", experiment, replace(setup, data_lr=lr), console=quiet())
    checked = replace(setup, hold_out=(), validate=photos, validate_lr=lr)
    with pytest.raises(EspanError, match=message):
        train(tmp_path / "no", experiment, checked, console=quiet())
    lr_of_scales(photos, lr, {"X4": 4}, suffix=True)
    (lr / "X4" / "2x4.png").unlink()
    with pytest.raises(EspanError, match=r"2.png has none"):
        train(tmp_path / "no", experiment, replace(setup, data_lr=lr), console=quiet())
    (lr / "x2").mkdir()
    if len(list(lr.glob("[xX]2"))) == 2:  # not where names ignore case
        with pytest.raises(EspanError, match=r"one folder X2 with"):
            train(tmp_path / "no", experiment, replace(setup, data_lr=lr), console=quiet())
    assert not (tmp_path / "no").exists()


def test_held_out_images_do_not_depend_on_the_seed(tiny, setup: Setup, tmp_path: Path) -> None:
    def images(count: int) -> list[TrainingImage]:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
        return [image_in_memory(f"{i}.png", p, 2) for i, p in enumerate(pixels)]

    for count, expected in ((1, 1), (39, 1), (40, 2), (1000, 8)):
        assert len(_drawn(images(count))) == expected
    assert _drawn(images(40)) == _drawn(images(40)[::-1])
    names, console = set(), recorded()
    for seed in (0, 3):
        experiment = tiny({"iterations": 1}, top={"seed": seed})
        run = tmp_path / str(seed)
        best = train(run, experiment, replace(setup, hold_out=()), console=console)
        names.add(*espan.load(best).record["held_out"])
    (name,) = names
    assert f"held out: {name}" in console.file.getvalue()


def test_held_out_images_are_validated_on_their_own_lr(
    tiny, setup: Setup, photos: Path, tmp_path: Path
) -> None:
    """Of the same network, LR images upside down have another PSNR; those of imresize, the same."""
    fixed = {"iterations": 1, "lr": 1e-12}
    experiment = tiny(
        fixed,
        {**fixed, "name": "two", "change": {"scale": 4}},
        top={"network": {"architecture": "c8d2k3x2"}},  # whose start depends on the seed alone
    )
    starts = {}
    for name in ("made", "given", "flipped"):
        lr = None if name == "made" else tmp_path / f"lr {name}"
        if lr is not None:
            lr_of_scales(photos, lr, {"X2": 2, "X4": 4}, suffix=False)
        if name == "flipped":
            for path in lr.glob("*/*.png"):
                write_image(path, Image(read_image(path).pixels[::-1].copy()))
        train(tmp_path / name, experiment, replace(setup, data_lr=lr), console=quiet())
        starts[name] = [m["psnr network"] for m in read_metrics(tmp_path / name)]
    assert starts["given"] == starts["made"]
    assert starts["flipped"][0] != starts["made"][0]
    assert starts["flipped"][2] != starts["made"][2]


def test_the_part_of_a_held_out_image_begins_at_a_pixel_of_every_lr_image() -> None:
    rows, columns = np.mgrid[:588, :612]
    hr = np.stack([rows % 256, columns % 256, rows // 64 + columns // 64], 2).astype(np.uint8)
    photo = image_in_memory("a.png", hr, 3)
    lr = {s: replace(photo, scale=s, lr_pixels=hr[::s, ::s].copy()) for s in (3, 4)}
    image = ValidationImage(photo, lr)
    for scale in (3, 4):
        small, large = image.pair(scale)
        assert np.array_equal(small, large[::scale, ::scale])
        assert large.shape == (512 // scale * scale, 512 // scale * scale, 3)


def test_copies_of_held_out_images_are_not_trained_on(
    tiny, setup: Setup, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "copy").mkdir()
    shutil.copy(photos / "1.png", folder / "copy" / "same.png")
    console = recorded()
    experiment = tiny({"iterations": 1})
    best = train(tmp_path / "run", experiment, replace(setup, data=(folder,)), console=console)
    assert "left out: 1 copies of images that are held out: copy/same.png" in (
        console.file.getvalue()
    )
    record = espan.load(best).record
    assert (record["images"], record["held_out"]) == (3, ["1.png", "3.png"])

    validated = replace(setup, data=(folder,), hold_out=(), validate=photos)
    train(tmp_path / "two", experiment, validated, console=console)
    assert "warning: 6 of the images to validate on are also trained on: 0.png" in (
        console.file.getvalue()
    )


def test_a_run_is_not_resumed_with_other_validation_images(
    tiny, setup: Setup, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "validation"
    shutil.copytree(photos, folder)
    stop_after(monkeypatch, 3)
    validated = replace(setup, hold_out=(), validate=folder)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny(), validated, console=quiet())
    monkeypatch.undo()
    black = Image(np.zeros((64, 80, 3), np.uint8))
    write_image(folder / "1.png", black)
    with pytest.raises(EspanError, match="the validation images are not those that the run was"):
        resume(tmp_path / "run", console=quiet())
    shutil.copy(photos / "1.png", folder)
    resume(tmp_path / "run", console=quiet())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("small", r"stage two: .*hr/b.png has 40x16 pixels; x4 needs 20 on both sides.  Validate"),
        ("alpha", r"hr/b.png has an alpha channel"),
        ("damaged", r"hr/a.png"),
        ("lr of x2", r"stage two: .*lr/a.png is 32x24; x4 needs 16x12, .* Without --validate-lr"),
        ("lr of x4", r"stage one: .*lr/a.png is 16x12; x2 needs 32x24"),
        ("lr damaged", r"lr/a.png"),
        ("held out", r"stage two: validation image b.png has 40x16 pixels; x4 needs 20"),
    ],
)
def test_validation_images_are_checked_for_every_stage(
    tiny, photos: Path, tmp_path: Path, monkeypatch, kind: str, message: str
) -> None:
    """The check precedes the first step and the creation of the folder."""
    monkeypatch.setattr(steps_module, "batches", None)  # would fail if it were reached
    hr, lr = tmp_path / "hr", tmp_path / "lr"
    sizes = {"small": (16, 40), "held out": (16, 40)}
    good = np.zeros((48, 64, 3), np.uint8)
    wrong = np.zeros((*sizes.get(kind, (48, 64)), 4 if kind == "alpha" else 3), np.uint8)
    for folder in (hr, lr):
        folder.mkdir()
    scale = 2 if kind == "lr of x2" else 4
    for name, pixels in (("a", good), ("b", wrong)):
        write_image(hr / f"{name}.png", Image(pixels))
        small = pixels[: pixels.shape[0] // scale, : pixels.shape[1] // scale]
        write_image(lr / f"{name}.png", Image(np.ascontiguousarray(small)))
    if "damaged" in kind:
        damaged = (lr if "lr" in kind else hr) / "a.png"
        damaged.write_bytes(damaged.read_bytes()[:50])
    experiment = tiny({"hr_patch": 8}, {"name": "two", "hr_patch": 8, "change": {"scale": 4}})
    if kind == "held out":
        setup = Setup(data=(hr,), hold_out=("b.png",), cpu=True)
    else:
        setup = Setup(
            data=(photos,), validate=hr, validate_lr=lr if "lr" in kind else None, cpu=True
        )
    with pytest.raises(EspanError, match=message):
        train(tmp_path / "run", experiment, setup, console=quiet())
    assert not (tmp_path / "run").exists()
