"""`espan evaluate` does not replace the files that it reads."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from espan import checkpoints
from espan.cli import main
from espan.errors import EspanError
from espan.evaluation.evaluate import evaluate as score_pairs
from espan.evaluation.evaluate import find_pairs
from espan.files import atomic_write, refuse_inputs
from espan.imaging import Image, read_image, write_image
from espan.models import Architecture
from espan.upscaling import Upscaler
from tests.image_files import GRAY_PROFILE, RGB_PROFILE, chunk


@pytest.fixture
def here(tmp_path, monkeypatch, make_network) -> Path:
    """hr/a.png and hr/b.bmp, LR images with the same names, and small weights."""
    monkeypatch.chdir(tmp_path)
    for path, side in (("hr/a.png", 24), ("hr/b.bmp", 24), ("lr/a.png", 12), ("lr/b.png", 12)):
        Path(path).parent.mkdir(exist_ok=True)
        write_image(Path(path), Image(np.full((side, side, 3), 99, np.uint8)))
    network = make_network(Architecture(8, (2,), scale=2))
    checkpoints.save(network, Path("w.safetensors"), record={})
    return tmp_path


def evaluate(monkeypatch, *arguments: str) -> int:
    command = ["espan", "evaluate", "--weights", "w.safetensors", "--hr", "hr", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--save hr", "hr/a.png"),
        ("--save linked", "linked/a.png"),
        ("--save hard", "hard/a.png"),
        ("--lr lr --save lr", "lr/a.png"),
    ],
)
def test_inputs_are_not_replaced(arguments, named, here, monkeypatch, capsys) -> None:
    Path("linked").symlink_to("hr")
    Path("hard").mkdir()
    Path("hard/a.png").hardlink_to("hr/a.png")
    before = contents(here)
    assert evaluate(monkeypatch, *arguments.split()) == 1
    assert f"{named} is an input of this command" in capsys.readouterr().err
    assert contents(here) == before


@pytest.mark.parametrize("save", [(), ("--save", "sr")])
def test_two_images_with_the_same_stem(save, here, monkeypatch, capsys) -> None:
    """Each has its own result and score."""
    shutil.copy("hr/b.bmp", "hr/a.bmp")
    assert evaluate(monkeypatch, "--json", *save) == 0
    images = json.loads(capsys.readouterr().out)["images"]
    assert [image["name"] for image in images] == ["a_bmp", "a", "b"]
    if save:
        assert sorted(contents(Path("sr"))) == ["a.png", "a_bmp.png", "b.png"]


@pytest.mark.parametrize("lr", [(), ("--lr", "lr")])
def test_results_keep_the_colour_space(lr, here, monkeypatch) -> None:
    """That of the image that was upscaled; a profile for gray does not fit RGB."""
    chunks = chunk(b"gAMA", bytes([0, 0, 0, 9]))
    folder, side = (Path("lr"), 12) if lr else (Path("hr"), 24)
    if not lr:
        Path("hr/b.bmp").unlink()
    gray = np.full((side, side, 1), 99, np.uint8)
    write_image(folder / "a.png", Image(gray, png_colour=chunks))
    write_image(folder / "b.png", Image(np.repeat(gray, 3, axis=2), RGB_PROFILE))
    write_image(folder / "c.png", Image(gray, GRAY_PROFILE))
    if lr:
        write_image(Path("hr/c.png"), Image(np.full((24, 24, 3), 99, np.uint8)))
    assert evaluate(monkeypatch, "--save", "sr", *lr) == 0
    assert read_image("sr/b.png").icc_profile == RGB_PROFILE
    assert read_image("sr/a.png").png_colour == chunks
    assert read_image("sr/c.png").icc_profile is None


def test_files_that_exist_are_not_replaced(here, monkeypatch, capsys) -> None:
    """For example, LR images that this run does not read."""
    before = contents(here)
    assert evaluate(monkeypatch, "--save", "lr") == 1
    error = "lr/a.png exists, and 1 more results; --overwrite replaces them"
    assert error in capsys.readouterr().err
    assert contents(here) == before
    assert evaluate(monkeypatch, "--overwrite") == 1
    assert "--overwrite has no effect without --save" in capsys.readouterr().err
    for overwrite in ([], ["--overwrite"]):
        assert evaluate(monkeypatch, "--lr", "lr", "--save", "new/sr", *overwrite) == 0
    assert sorted(contents(Path("new"))) == ["sr/a.png", "sr/b.png"]


def test_wrong_sizes_are_reported_first(here, monkeypatch) -> None:
    """The headers are checked before any image is upscaled; an orientation may swap the sides."""
    write_image(Path("hr/c.png"), Image(np.full((36, 24, 3), 99, np.uint8)))
    PIL.Image.new("RGB", (18, 12)).save(
        "lr/c.jpg",
        exif=bytes.fromhex("4578696600004d4d002a00000008000101120003000000010006000000000000"),
    )
    write_image(Path("lr/b.png"), Image(np.full((13, 12, 3), 99, np.uint8)))
    Path("lr/a.png").write_bytes(b"no image")
    upscaler = Upscaler("w.safetensors", device="cpu")
    results = list(score_pairs(find_pairs(Path("hr"), Path("lr"), [2]), upscaler))
    assert [type(r).__name__ for r in results] == ["Failure", "Failure", "Score"]
    assert [r.name for r in results] == ["b", "a", "c"]


def test_refuse_inputs(here) -> None:
    refuse_inputs([Path("new.png"), Path("lr/a.png")], [Path("hr/a.png"), Path("missing")])
    with pytest.raises(EspanError, match=r"hr/../hr/a.png is an input .*\(hr/a.png\)"):
        refuse_inputs([Path("hr/../hr/a.png")], [Path("hr/a.png")])
    with pytest.raises(EspanError, match=r"new/../hr/a.png is an input"):  # once "new" is made
        refuse_inputs([Path("new/../hr/a.png")], [Path("hr/a.png")])


def test_a_file_that_cannot_be_created_is_named(tmp_path) -> None:
    """Not the temporary one beside it."""
    path = tmp_path / "missing" / "a.pack"
    with pytest.raises(FileNotFoundError) as caught, atomic_write(path):
        pass
    assert caught.value.filename == str(path)
