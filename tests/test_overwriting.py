"""`espan evaluate` replaces none of the files that it reads."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from espan import checkpoints
from espan.cli import main
from espan.errors import EspanError
from espan.files import refuse_inputs
from espan.imaging import Image, write_image
from espan.models import Architecture


@pytest.fixture
def here(tmp_path, monkeypatch, make_network) -> Path:
    """hr/a.png, hr/b.bmp with LR images of their names, and small weights."""
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


def test_two_images_with_one_result(here, monkeypatch, capsys) -> None:
    shutil.copy("hr/b.bmp", "hr/a.bmp")
    assert evaluate(monkeypatch, "--save", "sr") == 1
    assert "hr/a.bmp and hr/a.png would both be saved as sr/a.png" in capsys.readouterr().err
    assert not Path("sr").exists()


def test_results_of_an_earlier_run_are_replaced(here, monkeypatch) -> None:
    for _ in range(2):
        assert evaluate(monkeypatch, "--lr", "lr", "--save", "new/sr") == 0
    assert sorted(contents(Path("new"))) == ["sr/a.png", "sr/b.png"]


def test_refuse_inputs(here) -> None:
    refuse_inputs([Path("new.png"), Path("lr/a.png")], [Path("hr/a.png"), Path("missing")])
    with pytest.raises(EspanError, match=r"hr/../hr/a.png is an input .*\(hr/a.png\)"):
        refuse_inputs([Path("hr/../hr/a.png")], [Path("hr/a.png")])
