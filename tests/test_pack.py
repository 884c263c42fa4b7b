"""Packs: contents, damage, and that none is ever partially written."""

import hashlib
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from espan.data import Crops, batches, fingerprint, open_images, photographs
from espan.data.pack import MAGIC, Pack
from espan.data.prepare import prepare
from espan.errors import EspanError
from espan.imaging import Image, write_image

ROOT = Path(__file__).parents[1]
HEADER = 64
ODD = os.fsdecode("ä 中".encode() + b"\xff.png")  # not UTF-8, which Linux allows


def noise(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three usable images, two of them with the same pixels, and three unusable ones."""
    path = tmp_path / "photos"
    (path / "d").mkdir(parents=True)
    write_image(path / "b.png", Image(noise(67, 50, 1)))
    write_image(path / "a.bmp", Image(noise(40, 64, 2)))
    write_image(path / "d" / ODD, Image(noise(67, 50, 1)))
    write_image(path / "tiny.png", Image(noise(31, 64, 3)))
    write_image(path / "alpha.png", Image(np.zeros((64, 64, 4), np.uint8)))
    (path / "broken.png").write_bytes((path / "b.png").read_bytes()[:2000])
    return path


@pytest.fixture
def pack(folder: Path) -> Path:
    path = folder.parent / "photos.pack"
    prepare([folder], path, smallest=32)
    return path


def test_round_trip(folder: Path) -> None:
    path, calls = folder.parent / "photos.pack", []
    result = prepare([folder], path, smallest=32, each=lambda *at: calls.append(at))
    assert (result.images, result.duplicates, result.size) == (3, 1, path.stat().st_size)
    assert [s.path.name for s in result.skipped] == ["alpha.png", "broken.png", "tiny.png"]
    assert "64 x 31 pixels are too few; both sides need 32" in result.skipped[2].reason
    assert calls[-1] == (6, 6, 3 * (2 * 67 * 50 + 40 * 64))
    opened = Pack(path)
    assert [e.name for e in opened.entries] == ["a.bmp", "b.png", f"d/{ODD}"]
    for index, expected in enumerate((noise(40, 64, 2), noise(67, 50, 1), noise(67, 50, 1))):
        np.testing.assert_array_equal(opened.pixels(index), expected)
    assert not opened.pixels(0).flags.writeable
    assert opened.damaged() == []
    assert sorted(os.listdir(folder.parent)) == ["photos", "photos.pack"]


def test_a_pack_trains_as_its_folder_does_at_any_scale(folder: Path, pack: Path) -> None:
    (folder / "tiny.png").unlink()  # not too small at x2, and not in the pack
    for scale in (2, 3, 4):
        sources = [open_images([s], scale=scale, smallest=9)[0] for s in (folder, pack)]
        assert fingerprint(sources[0]) == fingerprint(sources[1])
        a, b = (Crops(images, patch=9, seed=4).batch(5, 20) for images in sources)
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


def test_images_too_small_for_the_patch_are_skipped(pack: Path) -> None:
    images, skipped = open_images([pack], scale=4, smallest=12)
    assert [i.name for i in images] == ["b.png", f"d/{ODD}"]
    assert "a.bmp: 64 x 40 pixels are too few; both sides need 48" in skipped[0].reason


def test_packs_and_folders_together(folder: Path, pack: Path) -> None:
    images, _ = open_images([pack, folder / "d", pack], scale=4, smallest=8)
    assert [i.name for i in images] == ["a.bmp", "b.png", f"d/{ODD}", ODD]


def test_bytes_follow_the_format(pack: Path) -> None:
    data = pack.read_bytes()
    magic, version, zero, size, length, digest = struct.unpack("<8sIIQQ32s", data[:HEADER])
    assert (magic, version, zero) == (MAGIC, 1, 0)
    assert size == 3 * (2 * 67 * 50 + 40 * 64)
    pixels, index = data[HEADER : HEADER + size], data[HEADER + size :]
    assert pixels == b"".join(noise(*s).tobytes() for s in ((40, 64, 2), (67, 50, 1), (67, 50, 1)))
    assert len(index) == length
    assert hashlib.sha256(index).digest() == digest


def test_the_same_images_make_the_same_bytes(folder: Path, pack: Path, tmp_path: Path) -> None:
    time.sleep(0.01)
    copied = tmp_path / "elsewhere"
    shutil.copytree(folder, copied)
    prepare([copied], tmp_path / "again", smallest=32)
    assert (tmp_path / "again").read_bytes() == pack.read_bytes()


def damage(path: Path, position: int, xor: int = 1) -> None:
    with path.open("r+b") as file:
        file.seek(position, os.SEEK_END if position < 0 else os.SEEK_SET)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ xor]))


@pytest.mark.parametrize(
    ("position", "message"),
    [
        (0, "is not a pack"),
        (7, "is not a pack"),
        (8, "version 0, and this espan reads version 1"),
        (17, "its header says"),
        (25, "its header says"),
        (40, "its index does not match its hash"),
        (-2, "its index does not match its hash"),
    ],
)
def test_a_damaged_header_or_index(pack: Path, position: int, message: str) -> None:
    damage(pack, position)
    with pytest.raises(EspanError, match=message) as error:
        open_images([pack], scale=4, smallest=8)
    assert str(pack) in str(error.value)


def test_a_newer_version(pack: Path) -> None:
    damage(pack, 8, xor=3)
    with pytest.raises(EspanError, match=r"version 2, .* reads version 1; update espan"):
        open_images([pack], scale=4, smallest=8)


@pytest.mark.parametrize("left", [0, 5, 30, 64, 5000, -1])
def test_a_truncated_pack(pack: Path, left: int) -> None:
    os.truncate(pack, left % pack.stat().st_size)
    with pytest.raises(EspanError, match=r"not a pack|truncated|its header says"):
        open_images([pack], scale=4, smallest=8)


def test_damaged_pixels_are_never_trained_on(pack: Path) -> None:
    damage(pack, HEADER + 3 * 40 * 64)  # the first byte of b.png
    images, _ = open_images([pack], scale=4, smallest=8)
    assert images[0].crop(0, 0, 8, 8)[1].shape == (32, 32, 3)
    with pytest.raises(EspanError, match=r"the pixels of b.png do not match their hash"):
        images[1].crop(4, 4, 8, 8)  # the damaged byte is not in this crop
    for workers in (0, 2):
        crops = Crops(images, patch=8, seed=0)
        with pytest.raises(EspanError, match=r"b.png"):
            list(
                batches(
                    crops, batch=4, first_step=0, steps=9, workers=workers,
                    device=torch.device("cpu"),
                )
            )  # fmt: skip
    assert Pack(pack).damaged() == ["b.png"]


def test_a_pack_modified_while_in_use(pack: Path) -> None:
    images, _ = open_images([pack], scale=4, smallest=8)
    images[0].crop(0, 0, 8, 8)
    damage(pack, HEADER + 5)
    with pytest.raises(EspanError, match="was changed while it was in use"):
        images[0].crop(0, 0, 8, 8)


def test_a_pack_replaced_while_in_use(folder: Path, pack: Path) -> None:
    """The new pack is another file; the old one exists until it is closed."""
    images, _ = open_images([pack], scale=4, smallest=8)
    (folder / "a.bmp").unlink()
    prepare([folder], pack, smallest=32, overwrite=True)
    assert [e.name for e in Pack(pack).entries] == ["b.png", f"d/{ODD}"]
    np.testing.assert_array_equal(images[0].hr, noise(40, 64, 2))


def test_only_one_file_is_open(pack: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    opened = Pack(pack)
    for index in range(3):
        opened.pixels(index)
    assert len(os.listdir("/proc/self/fd")) <= before + 2  # the map has its own
    del opened
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_to_pack(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(EspanError, match=r"no images in .*empty"):
        prepare([folder, tmp_path / "empty"], tmp_path / "p", smallest=32)
    with pytest.raises(EspanError, match="none of 6 images can be used"):
        prepare([folder], tmp_path / "p", smallest=68)
    assert sorted(os.listdir(tmp_path)) == ["empty", "photos"]


def test_where_a_pack_cannot_be_written(folder: Path, pack: Path) -> None:
    before = pack.read_bytes()
    with pytest.raises(EspanError, match="exists; --overwrite replaces it"):
        prepare([folder], pack, smallest=45)
    with pytest.raises(EspanError, match="photos is a folder"):
        prepare([folder], folder, smallest=32)
    with pytest.raises(EspanError, match="nowhere does not exist"):
        prepare([folder], folder / "nowhere" / "p", smallest=32)
    assert pack.read_bytes() == before
    assert prepare([folder], pack, smallest=45, overwrite=True).images == 2


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_full_disk(folder: Path, pack: Path) -> None:
    """A limit on file sizes makes the system's write fail midway, like a full disk."""
    before = pack.read_bytes()
    code = """
import resource, sys
from pathlib import Path
from espan.data.prepare import prepare
resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, 15_000))
try:
    prepare([Path(sys.argv[1])], Path(sys.argv[2]), smallest=32, overwrite=True)
except OSError as error:
    print(error)
"""
    printed, _ = child(code, folder, pack).communicate()
    assert printed == f"[Errno 27] File too large: '{pack}'\n"
    assert sorted(os.listdir(folder.parent)) == ["photos", "photos.pack"]
    assert pack.read_bytes() == before


def test_killed_midway(folder: Path, pack: Path) -> None:
    """A new pack does not exist, and an existing one is unchanged."""
    before = pack.read_bytes()
    code = """
import sys, time
from pathlib import Path
from espan.data.prepare import prepare
def each(done, total, size):
    if done == 3:
        print("midway", flush=True)
        time.sleep(60)
prepare([Path(sys.argv[1])], Path(sys.argv[2]), smallest=32, overwrite=True, each=each)
"""
    running = [child(code, folder, target) for target in (pack, pack.with_name("new"))]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "midway\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert pack.read_bytes() == before
    assert not pack.with_name("new").exists()


def test_few_images_are_decoded_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {tmp_path / f"{i}.bmp": f"{i}.bmp" for i in range(40)}
    read: list[Path] = []

    def read_image(path: Path) -> Image:
        read.append(path)
        return Image(noise(8, 8, 0))

    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr(photographs, "read_image", read_image)
    decoded = photographs.decode_photographs(paths, lambda path, height, width: None)
    assert [next(decoded).path for _ in range(5)] == list(paths)[:5]
    del decoded  # waits for unfinished work
    assert len(read) == 5 + 3


@pytest.mark.slow
def test_memory_does_not_grow_with_the_folder(tmp_path: Path) -> None:
    """60 images of 3 MB each would take 180 MB if they were all kept in memory."""
    (tmp_path / "photos").mkdir()
    one = tmp_path / "photos" / "0.bmp"
    write_image(one, Image(noise(1000, 1000, 0)))
    for i in range(1, 60):
        os.link(one, tmp_path / "photos" / f"{i}.bmp")
    code = """
import resource, sys
from pathlib import Path
from espan.data.prepare import prepare
def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
seen = []
photos, pack = map(Path, sys.argv[1:])
prepare([photos], pack, smallest=32, each=lambda *_: seen.append(most()))
print(seen[-1] - seen[9])
"""
    printed, _ = child(code, tmp_path / "photos", tmp_path / "p").communicate()
    assert int(printed) < 60e6
    assert (tmp_path / "p").stat().st_size > 180e6
