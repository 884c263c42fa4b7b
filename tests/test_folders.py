"""Finding the images in a folder and the LR image of each HR image."""

import os
from pathlib import Path

import pytest
from PIL import Image as PILImage

from espan.data.photographs import find_photographs
from espan.errors import EspanError
from espan.evaluation.evaluate import find_pairs
from espan.imaging import find_images, folders, pair_lr, read_image
from espan.imaging.image_read import IMAGE_SUFFIXES


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def names(folder: Path, **options) -> list[str]:
    return list(find_images(folder, **options).images.values())


def unreadable(monkeypatch, folder: Path) -> None:
    """Refuse to list a folder, as the system does without permission (except for root)."""
    scandir = os.scandir

    def refuse(path):
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refuse)


def test_images_are_found_by_their_suffixes(tmp_path: Path) -> None:
    make(tmp_path, "b.png", "a/c.JPG", "a/b.jfif", "a.jpe", "notes.txt", "a/Thumbs.db", "png")
    assert names(tmp_path) == ["a/b.jfif", "a/c.JPG", "a.jpe", "b.png"]
    assert names(tmp_path, subfolders=False) == ["a.jpe", "b.png"]
    assert names(tmp_path, leave_out=tmp_path / "a") == ["a.jpe", "b.png"]
    assert find_photographs([tmp_path]) == find_images(tmp_path).images


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_is_supported(suffix: str, tmp_path: Path) -> None:
    """Pillow's table has the format of each suffix; two are for BigTIFF."""
    kind = {".btf": "TIFF", ".tf8": "TIFF", ".jif": "JPEG", ".jfi": "JPEG"}.get(
        suffix, PILImage.registered_extensions().get(suffix)
    )
    path = tmp_path / f"a{suffix}"
    PILImage.new("RGB", (4, 3), (1, 2, 3)).save(path, "BMP" if kind == "DIB" else kind)
    assert names(tmp_path) == [path.name]
    assert read_image(path).pixels.shape == (3, 4, 3)


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "a.png", "._a.png", ".b.png", ".thumbnails/c.png", "__MACOSX/._a.png")
    assert names(tmp_path) == ["a.png"]
    make(tmp_path / ".hidden", "a.png")  # a folder that was named is searched
    assert names(tmp_path / ".hidden") == ["a.png"]


def test_links_are_followed_and_each_folder_is_searched_once(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.png", "elsewhere/sub/b.png", "in/c/d.png")
    for link, target in (
        ("in/linked", "elsewhere"),
        ("in/again", "elsewhere/sub"),
        ("elsewhere/loop", "in"),
        ("in/b", "in/c"),  # sorts first, but is a link
        ("in/self", "in/self"),
    ):
        (tmp_path / link).symlink_to(tmp_path / target)
    (tmp_path / "in/broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in/e.png").symlink_to(tmp_path / "elsewhere/a.png")
    assert names(tmp_path / "in") == [
        "again/b.png", "broken.png", "c/d.png", "e.png", "linked/a.png",
    ]  # fmt: skip


def test_a_folder_left_out_may_appear_meanwhile(tmp_path: Path, monkeypatch) -> None:
    """As under torchrun, where another process writes the first results."""
    make(tmp_path, "a.png")
    scandir = os.scandir

    def later(path):
        make(tmp_path, "out/a.png")
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", later)
    assert names(tmp_path, leave_out=tmp_path / "out") == ["a.png"]


def test_unreadable_folders_are_reported(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path, "a.png", "locked/b.png", "sub/c.png")
    unreadable(monkeypatch, tmp_path / "locked")
    images, errors = find_images(tmp_path)
    assert list(images.values()) == ["a.png", "sub/c.png"]
    assert [e.filename for e in errors] == [str(tmp_path / "locked")]
    with pytest.raises(EspanError, match=r"locked cannot be read \(Permission denied\)"):
        find_photographs([tmp_path])
    unreadable(monkeypatch, tmp_path)
    assert find_images(tmp_path).unreadable
    with pytest.raises(EspanError, match=r"cannot be read \(Permission denied\)"):
        find_pairs(tmp_path, None, [4])


def test_folders_without_images(tmp_path: Path) -> None:
    make(tmp_path, "sub/a.png")
    with pytest.raises(EspanError, match=r"no images in .*: no file name ends in .png"):
        find_images(tmp_path, subfolders=False)
    for path in (tmp_path / "nowhere", tmp_path / "sub/a.png"):
        with pytest.raises(EspanError, match="is not a folder"):
            find_images(path)


@pytest.mark.parametrize(
    ("hr", "lr", "scales", "found"),
    [
        ("0801.png a.jpg", "0801x4.png a.webp", [4], ["0801x4.png", "a.webp"]),
        ("d/a.png a.png", "a.png d/ax2.png", [2], ["d/ax2.png", "a.png"]),
        ("a.png", "ax3.png", [2, 3], ["ax3.png"]),
        ("a.png ax4.png", "a.png ax4.png", [4], ["a.png", "ax4.png"]),
        ("a.png ax4.png", "ax4.png ax4x4.png a.png", [4], "ax4.png has ax4.png and ax4x4.png"),
        ("a.png", "a.png a.webp", [4], "a.png has a.png and a.webp$"),
        ("a.png", "a.png ax4.png", [4], "a.png has a.png and ax4.png"),
        ("a.png", "ax4.png ax4.bmp", [4], "a.png has ax4.png and ax4.bmp"),
        ("a.png b.png", "ax2.png b.png", [4], "or with x4 after it: a.png has none$"),
        ("a.png a.bmp", "a.png", [4], "a.png and a.bmp share a.png"),
        ("a.png", "A.png", [4], "a.png has none"),
        (" ".join(f"{i}.png" for i in range(9)), "x.png", [2, 4], "x2 or x4 .*; and 5 more$"),
    ],
)
def test_pairs(hr: str, lr: str, scales: list[int], found, tmp_path: Path) -> None:
    """Pairs depend on names only; evaluation, without subfolders, finds the same."""
    lr_files = {Path(name): name for name in lr.split()}
    if isinstance(found, str):
        with pytest.raises(EspanError, match=found):
            pair_lr(hr.split(), lr_files, scales)
    else:
        assert [str(p) for p in pair_lr(hr.split(), lr_files, scales).values()] == found
    make(tmp_path / "hr", *hr.split())
    make(tmp_path / "lr", *lr.split())
    if isinstance(found, str):
        with pytest.raises(EspanError, match="each HR image needs one LR image"):
            find_pairs(tmp_path / "hr", tmp_path / "lr", scales)
    elif "/" not in hr:
        result = find_pairs(tmp_path / "hr", tmp_path / "lr", scales)
        assert [p.lr.name for p in result] == found
