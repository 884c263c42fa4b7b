"""Writing image files, and the state after a failed write."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from espan.errors import ImageError
from espan.imaging import Image, check_output, read_image, write_image
from espan.imaging import image_write as writer
from tests.image_files import GRAY_PROFILE, photo, ramp

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_all_values_are_preserved(tmp_path: Path, suffix: str, dtype: type, channels: int) -> None:
    pixels = ramp(channels, dtype)
    write_image(tmp_path / f"a.{suffix}", Image(pixels))
    result = read_image(tmp_path / f"a.{suffix}").pixels
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(s, c) for s in ("png", "tiff", "bmp") for c in (1, 2, 3, 4)],
)
def test_other_software_can_read_the_files(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = photo(33, 65, channels)
    write_image(tmp_path / f"a.{suffix}", Image(pixels, dpi=(150, 300)))
    with PIL.Image.open(tmp_path / f"a.{suffix}") as image:
        if suffix == "bmp" and channels == 2:  # written as RGB and alpha
            pixels, channels = pixels[..., [0, 0, 0, 1]], 4
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
        assert image.info["dpi"] == pytest.approx((150, 300), rel=1e-3)
        assert "exif" not in image.info


@pytest.mark.parametrize("lossless", [False, True])
def test_lossless_webp_stays_lossless(tmp_path: Path, lossless: bool) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 4), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.webp", lossless=lossless, exact=True)
    image = read_image(tmp_path / "a.webp")
    assert image.lossless is lossless
    write_image(tmp_path / "b.webp", image)
    again = read_image(tmp_path / "b.webp")
    assert again.lossless is lossless
    visible = image.pixels[..., 3] > 0
    assert np.array_equal(again.pixels[visible], image.pixels[visible]) is lossless


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "webp"])
def test_lossy_formats_stay_close(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = photo(64, 96, channels)
    path = tmp_path / f"a.{suffix}"
    write_image(path, Image(pixels))
    result = read_image(path).pixels
    assert np.abs(result - pixels.astype(float)).mean() < 1.5
    if suffix != "webp":
        assert result.shape == pixels.shape
        with PIL.Image.open(path) as image:
            assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]
            assert max(image.quantization[0]) <= 12  # type: ignore[attr-defined]


def test_webp_keeps_alpha(tmp_path: Path) -> None:
    pixels = photo(40, 50, 4)
    pixels[..., 3] = np.arange(50) * 5
    write_image(tmp_path / "a.webp", Image(pixels))
    result = read_image(tmp_path / "a.webp").pixels
    np.testing.assert_array_equal(result[..., 3], pixels[..., 3])


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "webp"])
def test_16_bits_are_rounded_to_8(tmp_path: Path, suffix: str) -> None:
    pixels = ramp(1, np.uint16)
    expected = np.rint(pixels / 257).astype(np.uint8)
    assert expected[0, :, 0].tolist() == [0] * 128
    assert expected[1, 0, 0] == 0
    assert expected[1, 1, 0] == 1
    write_image(tmp_path / f"a.{suffix}", Image(pixels))
    write_image(tmp_path / f"b.{suffix}", Image(expected))
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    if suffix == "bmp":
        np.testing.assert_array_equal(read_image(tmp_path / "a.bmp").pixels, expected)


def test_an_image_is_checked() -> None:
    for pixels, message in [
        (np.zeros((4, 5, 3)), "float64"),
        (np.zeros((4, 5), np.uint8), r"\(4, 5\)"),
        (np.zeros((4, 5, 5), np.uint8), r"\(4, 5, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\)"),
        (np.zeros((4, 5, 3), np.uint8)[:, ::2], "C-contiguous"),
    ]:
        with pytest.raises(ImageError, match=message):
            Image(pixels)
    with pytest.raises(ImageError, match="profile is for 'GRAY' pixels, but the image has 3"):
        Image(photo(4, 5), GRAY_PROFILE)


@pytest.mark.parametrize(
    ("name", "format", "kind"),
    [
        ("a.png", None, "png"), ("a.JPG", None, "jpeg"), ("a.jpeg", None, "jpeg"),
        ("a.WebP", None, "webp"), ("a.tif", None, "tiff"), ("a.tiff", None, "tiff"),
        ("a.bmp", None, "bmp"), ("a.png", "BMP", "bmp"), ("a", "tif", "tiff"),
        ("a.b.png", None, "png"),
    ],
)  # fmt: skip
def test_choice_of_format(tmp_path: Path, name: str, format: str | None, kind: str) -> None:
    assert check_output(name, 5, 4, 3, format=format) == kind
    write_image(tmp_path / name, Image(photo(4, 5)), format=format)
    with PIL.Image.open(tmp_path / name) as image:
        assert image.format == kind.upper()


@pytest.mark.parametrize(
    ("name", "format", "shape", "message"),
    [
        ("a.gif", None, (4, 5, 3), r"suffix '\.gif'.*known: png, jpg, jpeg, .*, bmp"),
        ("a", None, (4, 5, 3), "without a suffix.*known: png"),
        ("a.png", "heic", (4, 5, 3), "format 'heic'.*known: png"),
        ("a.jpg", None, (4, 5, 4), "JPEG has no alpha channel.*write png, webp or tiff"),
        ("a.jpg", None, (4, 5, 2), "JPEG has no alpha channel"),
        ("a.webp", None, (1, 16384, 1), "16384 x 1 pixels are too many for WEBP.*16383"),
        ("a.jpg", None, (65501, 1, 1), "1 x 65501 pixels are too many for JPEG.*65500"),
        ("gone/a.png", None, (4, 5, 3), r"gone/a\.png: the folder to write into does not exist"),
        ("folder.png", None, (4, 5, 3), "not a regular file"),
        ("pipe.png", None, (4, 5, 3), "not a regular file"),
    ],
)
def test_unsupported_outputs(
    tmp_path: Path, name: str, format: str | None, shape: tuple[int, int, int], message: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ImageError, match=message) as caught:
        write_image(tmp_path / name, Image(np.zeros(shape, np.uint8)), format=format)
    assert str(tmp_path / name) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(("channels", "side"), [(1, 65600), (2, 32800), (3, 37900), (4, 32800)])
def test_a_bmp_file_above_4_gib_is_rejected(channels: int, side: int) -> None:
    with pytest.raises(ImageError, match=f"{side} x {side} pixels are too many for BMP.*4 GiB"):
        check_output("a.bmp", side, side, channels)
    assert check_output("a.bmp", side - 200, side - 200, channels) == "bmp"


def test_the_longest_sides(tmp_path: Path) -> None:
    for name, side in (("a.webp", 16383), ("a.jpg", 65500)):
        write_image(tmp_path / name, Image(np.zeros((1, side, 1), np.uint8)))
        assert read_image(tmp_path / name).pixels.shape[:2] == (1, side)


def test_large_tiff(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 4 GB (here: 100 bytes) of pixels the file has 64-bit offsets."""
    monkeypatch.setattr(writer, "_PLAIN_TIFF_BYTES", 100)
    write_image(tmp_path / "a.tif", Image(photo(10, 10)))
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, photo(10, 10))


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_image(tmp_path / "a.png", Image(photo(4, 5)))
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to(tmp_path / "real" / "a.png")
    write_image(tmp_path / "link.png", Image(photo(4, 5)))
    assert (tmp_path / "link.png").is_symlink()
    assert read_image(tmp_path / "real" / "a.png").pixels.shape == (4, 5, 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_failed_write_leaves_no_trace(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: BaseException,
    old: bytes | None,
) -> None:
    path = tmp_path / "a.png"
    if old is not None:
        path.write_bytes(old)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(type(error)) as caught:
            write_image(path, Image(photo(4, 5)))
    if isinstance(error, OSError):
        assert str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
    assert os.listdir(tmp_path) == (["a.png"] if old else [])
    if old:
        assert path.read_bytes() == old


def test_the_file_is_flushed_through_a_handle_for_writing(tmp_path: Path, monkeypatch) -> None:
    """Windows refuses to flush other handles."""
    access = []
    flags = lambda file: access.append(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE)  # noqa: E731
    monkeypatch.setattr(os, "fsync", flags)
    write_image(tmp_path / "a.png", Image(photo(4, 5)))
    assert access == [os.O_RDWR]


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    """A limit on file sizes makes the system's write fail midway, like a full disk."""
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"old")
    code = f"""
import resource, numpy as np
from espan.imaging import Image, write_image
image = Image(np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_image({str(path)!r}, image)
except OSError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert run.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"
