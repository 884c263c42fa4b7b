"""Reading image files, and rejecting those that are not supported."""

import io
import os
import resource
import struct
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import pyvips

from espan.errors import ImageError, ImageWarning
from espan.imaging import Image, is_image_path, read_image, write_image
from tests.image_files import (
    by_pillow,
    chunk,
    photo,
    png,
    ramp,
    read_bytes,
    sample,
    tiff,
)

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_samples(tmp_path: Path, channels: int, dtype: type) -> None:
    pixels = ramp(channels, dtype)
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    data = png(width, height, pixels.itemsize * 8, colour, rows)
    result = read_bytes(tmp_path, data)
    assert result.pixels.dtype == dtype
    assert result.pixels.flags.c_contiguous
    np.testing.assert_array_equal(result.pixels, pixels)
    assert (result.icc_profile, result.dpi) == (None, None)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_samples(tmp_path: Path, channels: int, dtype: type) -> None:
    pixels = ramp(channels, dtype)
    data = tiff(pixels, {338: [2]} if channels in (2, 4) else {})
    result = read_bytes(tmp_path, data)
    assert result.pixels.dtype == dtype
    np.testing.assert_array_equal(result.pixels, pixels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "JPEG", "WEBP"])
def test_formats(tmp_path: Path, format: str, mode: str) -> None:
    pixels = photo(31, 47, 1 if mode == "L" else 3)
    data = by_pillow(PIL.Image.fromarray(pixels.squeeze()), format)
    result = read_bytes(tmp_path, data, "misleading.png").pixels
    expected = np.asarray(PIL.Image.open(io.BytesIO(data))).reshape(31, 47, -1)
    # Decoders may differ by a step or two in how they round chroma.
    step = 0 if format in ("PNG", "TIFF", "BMP") else 3
    assert result.shape == expected.shape
    assert np.abs(result.astype(int) - expected).max() <= step


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_small_depths_are_scaled_to_the_full_range(tmp_path: Path, depth: int) -> None:
    levels = 2**depth
    bits = "".join(f"{v:0{depth}b}" for v in range(levels)).ljust(64, "0")
    row = b"\0" + int(bits, 2).to_bytes(8, "big")
    result = read_bytes(tmp_path, png(levels, 1, depth, 0, row[: 1 + -(-levels * depth // 8)]))
    expected = np.arange(levels) * 255 // (levels - 1)
    np.testing.assert_array_equal(result.pixels, expected.reshape(1, -1, 1))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_one_bit(tmp_path: Path, format: str) -> None:
    image = PIL.Image.fromarray(photo(9, 21, 1)[..., 0]).convert("1")
    expected = np.asarray(image.convert("L"))[..., None]
    np.testing.assert_array_equal(read_bytes(tmp_path, by_pillow(image, format)).pixels, expected)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_palette(tmp_path: Path, format: str) -> None:
    image = PIL.Image.fromarray(photo(20, 30)).quantize(11)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_bytes(tmp_path, by_pillow(image, format)).pixels, expected)


def test_transparency_becomes_alpha(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(photo(20, 30)).quantize(4)
    data = by_pillow(image, "PNG", transparency=bytes([0, 80, 255, 3]))
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGBA"))
    np.testing.assert_array_equal(read_bytes(tmp_path, data).pixels, expected)
    gray = photo(20, 30, 1)
    data = by_pillow(PIL.Image.fromarray(gray[..., 0]), "PNG", transparency=int(gray[3, 4, 0]))
    result = read_bytes(tmp_path, data).pixels
    np.testing.assert_array_equal(result[..., :1], gray)
    np.testing.assert_array_equal(result[..., 1:], np.where(gray == gray[3, 4, 0], 0, 255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize(
    ("count", "extra", "alpha"),
    [
        (1, [2], 0), (1, [0], None), (1, [], None), (2, [0, 2], 1), (2, [2, 0], 0),
        (2, [0, 0], None), (2, [2], 0), (4, [0, 0, 2, 0], 2), (2, [2, 2], 0), (1, [999], 0),
    ],
)  # fmt: skip
def test_only_declared_tiff_alpha_is_alpha(
    tmp_path: Path, count: int, extra: list[int], alpha: int | None, colours: int, dtype: type
) -> None:
    pixels = photo(9, 11, colours + count, np.iinfo(dtype).max)
    data = tiff(pixels, {262: [2 if colours == 3 else 1]} | ({338: extra} if extra else {}))
    kept = list(range(colours)) + ([] if alpha is None else [colours + alpha])
    dropped = colours + count - len(kept)
    if dropped:
        with pytest.warns(ImageWarning, match=rf"image\.bin: {dropped} extra sample"):
            result = read_bytes(tmp_path, data).pixels
    else:
        result = read_bytes(tmp_path, data).pixels
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels[..., kept])


@pytest.mark.parametrize(
    ("photometric", "extra"), [(2, [0, 1]), (1, [2, 1]), (5, [1]), (5, [0, 1])]
)
def test_premultiplied_alpha_that_libvips_misreads_is_rejected(
    tmp_path: Path, photometric: int, extra: list[int]
) -> None:
    channels = {1: 1, 2: 3, 5: 4}[photometric] + len(extra)
    data = tiff(photo(4, 5, channels), {262: [photometric], 338: extra})
    with pytest.raises(ImageError, match="premultiplied alpha after"):
        read_bytes(tmp_path, data)


@pytest.mark.parametrize("big", [False, True])
def test_alpha_in_tiff_files_of_other_software(tmp_path: Path, big: bool) -> None:
    pixels = photo(9, 11, 4)
    image = PIL.Image.fromarray(pixels)
    data = by_pillow(image, "TIFF", big_tiff=big, compression="tiff_lzw")
    np.testing.assert_array_equal(read_bytes(tmp_path, data).pixels, pixels)


def test_premultiplied_alpha_is_divided_out(tmp_path: Path) -> None:
    alpha = np.full((5, 6, 1), 128, np.uint8)
    colours = photo(5, 6)
    stored = np.rint(colours * (128 / 255)).astype(np.uint8)
    data = tiff(np.concatenate([stored, alpha], -1), {338: [1]})
    result = read_bytes(tmp_path, data).pixels
    np.testing.assert_array_equal(result[..., 3:], alpha)
    assert np.abs(result[..., :3].astype(int) - colours).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_orientation_is_applied(tmp_path: Path, format: str, orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(format, {})
    data = by_pillow(
        PIL.Image.fromarray(photo(24, 40)), format, exif=exif, dpi=(100, 200), **options
    )
    result = read_bytes(tmp_path, data)
    expected = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))))
    assert result.pixels.shape == expected.shape
    assert result.pixels.flags.c_contiguous
    assert np.abs(result.pixels.astype(int) - expected).max() <= 2
    if format != "WEBP":
        upright = (100, 200) if orientation < 5 else (200, 100)
        assert result.dpi == pytest.approx(upright, rel=1e-3)
    write_image(tmp_path / "again.png", result)
    assert np.array_equal(read_image(tmp_path / "again.png").pixels, result.pixels)


@pytest.mark.parametrize("per_metre", [(0, 0), (2**31, 5000), (5000, 2**32 - 1)])
def test_an_impossible_resolution_is_not_kept(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], per_metre: tuple[int, int]
) -> None:
    resolution = chunk(b"pHYs", struct.pack(">IIB", *per_metre, 1))
    image = read_bytes(tmp_path, png(1, 1, 8, 0, b"\0\7", resolution))
    assert image.dpi is None
    write_image(tmp_path / "b.png", image)
    assert capfd.readouterr() == ("", "")


def test_only_a_stated_resolution_is_kept(tmp_path: Path) -> None:
    """Files may state 72 and 25.4 dpi, which are libvips' defaults."""
    image = PIL.Image.fromarray(photo(4, 5))
    for format in ("PNG", "JPEG", "TIFF"):
        for dpi in (72, 25.4 if format != "JPEG" else 25):
            kept = read_bytes(tmp_path, by_pillow(image, format, dpi=(dpi, dpi))).dpi
            assert kept == pytest.approx((dpi, dpi), rel=1e-3)
        assert read_bytes(tmp_path, by_pillow(image, format)).dpi is None
    aspect = chunk(b"pHYs", struct.pack(">IIB", 4, 3, 0))  # without a unit of length
    assert read_bytes(tmp_path, png(1, 1, 8, 0, b"\0\7", aspect)).dpi is None


def test_a_jpeg_file_without_its_end_marker(tmp_path: Path) -> None:
    data = by_pillow(PIL.Image.fromarray(photo(64, 96)), "JPEG")
    assert data.endswith(b"\xff\xd9")
    with pytest.warns(ImageWarning, match="lacks the marker at the end of a JPEG file"):
        result = read_bytes(tmp_path, data[:-2])
    np.testing.assert_array_equal(result.pixels, read_bytes(tmp_path, data).pixels)
    for missing in (3, 20, len(data) // 2):
        with pytest.raises(ImageError, match="damaged, truncated or unsupported JPEG"):
            read_bytes(tmp_path, data[:-missing])


def test_the_cause_of_a_failure_is_that_of_this_file(tmp_path: Path) -> None:
    data = by_pillow(PIL.Image.fromarray(photo(64, 96)), "JPEG")
    with pytest.raises(ImageError) as alone:
        read_bytes(tmp_path, data[:600])
    # libvips recovers from a profile that it cannot read, but keeps the message.
    image = pyvips.Image.black(8, 8, bands=3).copy(interpretation="srgb")
    image.set_type(pyvips.GValue.blob_type, "icc-profile-data", bytes(200))
    image.pngsave_buffer(keep="icc")
    assert pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
    with pytest.raises(ImageError) as later:
        read_bytes(tmp_path, data[:600])
    assert str(later.value) == str(alone.value)


def test_opaque_alpha_of_gif_is_dropped(tmp_path: Path) -> None:
    """A later frame is transparent, which is why libvips adds it."""
    frames = [PIL.Image.new("RGBA", (6, 5), (200, 0, 0, alpha)) for alpha in (255, 0)]
    data = by_pillow(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.warns(ImageWarning, match="holds 2 frames"):
        assert read_bytes(tmp_path, data).pixels.shape == (5, 6, 3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_only_the_first_of_several_frames(tmp_path: Path, format: str) -> None:
    frames = [PIL.Image.fromarray(np.rot90(photo(30, 30), k)[:20]).quantize(9) for k in range(3)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = by_pillow(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with pytest.warns(ImageWarning, match=r"image\.bin: holds 3 frames or pages"):
        result = read_bytes(tmp_path, data).pixels
    np.testing.assert_array_equal(result[..., :3], np.asarray(frames[0].convert("RGB")))


@pytest.mark.parametrize(
    "name",
    [
        "plain", "größe 画像 🐈.png", "a[page=1].png", "b[Q=5,strip].jpg", "100%.png",
        "with spaces .png", "-o.png", "no%20suffix", "[.png", "semi;colon'quote\"$HOME.png",
        "back\\slash\nnewline.png", os.fsdecode(b"latin1 \xe9.png"),
    ],
)  # fmt: skip
def test_any_file_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "fold[er] ü%d"
    folder.mkdir()
    pixels = photo(10, 12)
    write_image(folder / name, Image(pixels), format="png")
    assert os.listdir(folder) == [name]
    np.testing.assert_array_equal(read_image(folder / name).pixels, pixels)
    np.testing.assert_array_equal(read_image(str(folder / name)).pixels, pixels)


# Files that are rejected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.png", "no such file"),
        ("folder", "is a folder"),
        ("empty.png", "is empty"),
        ("text.png", "begins with b'not an i'; expected a PNG, JPEG"),
        ("pipe", "not a regular file"),
        ("x" * 300, "cannot be read"),
        ("text.png/below.png", "cannot be read"),
    ],
)
def test_files_that_are_not_images(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image at all")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert message in str(caught.value)


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(sample("PNG"))
    path.chmod(0)
    if os.geteuid() == 0:  # root may read anything

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ImageError, match=r"secret\.png: no permission"):
        read_image(path)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
def test_truncated_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], format: str, kept: float
) -> None:
    data = sample(format, (200, 300))
    with pytest.raises(ImageError) as caught:
        read_bytes(tmp_path, data[: int(len(data) * kept)])
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path / 'image.bin'}: damaged, truncated or unsupported {format} "
    )
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_never_raises_another_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], format: str
) -> None:
    """Every tenth prefix, and bytes overwritten at random, give an image or an ImageError."""
    data = sample(format, (16, 20))
    whole = read_bytes(tmp_path, data).pixels
    for length in range(0, len(data), 10):
        try:
            result = read_bytes(tmp_path, data[:length]).pixels
        except ImageError:
            continue
        # Only data after the last pixel may be missing.
        assert length > 0.9 * len(data)
        assert np.array_equal(result, whole)
    rng = np.random.default_rng(0)
    for _ in range(100):
        damaged = bytearray(data)
        for where in rng.integers(0, len(data), 3):
            damaged[where] = rng.integers(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            try:
                read_bytes(tmp_path, bytes(damaged))
            except ImageError:
                continue
    assert capfd.readouterr() == ("", "")


def claims(format: str, width: int, height: int) -> bytes:
    """A small file whose header claims many pixels."""
    if format == "PNG":
        return png(width, height, 8, 2, b"\0" * 100)
    data = bytearray(sample(format))
    if format == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif format == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif format == "GIF":
        frame = data.index(b",\0\0\0\0") + 5  # of the frame; the canvas size alone is ignored
        data[6:10] = data[frame : frame + 4] = struct.pack("<HH", width, height)
    else:
        return tiff(photo(4, 5), {256: [width], 257: [height], 278: [4]})
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_a_header_with_an_excessive_size(tmp_path: Path, format: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"image\.bin: .*claims 60000 x 59000 pixels; at most"):
        read_bytes(tmp_path, claims(format, 60000, 59000))
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert taken < 500_000  # kB; the pixels would be 10 GB, one byte for each still 3.5 GB


def test_max_pixels(tmp_path: Path) -> None:
    for suffix in ("png", "bmp"):
        path = tmp_path / f"image.{suffix}"
        write_image(path, Image(photo(10, 20)))
        assert read_image(path, max_pixels=200).pixels.shape == (10, 20, 3)
        with pytest.raises(ImageError, match="claims 20 x 10 pixels; at most 199"):
            read_image(path, max_pixels=199)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiff(np.zeros((4, 5, 3), np.float32), {339: [3, 3, 3]}), "3 x float samples"),
        (lambda: tiff(np.zeros((4, 5, 1), np.float64), {339: [3]}), "unsupported TIFF file"),
        (lambda: tiff(np.zeros((4, 5, 1), np.uint32), {}), "1 x uint samples"),
        (lambda: tiff(np.zeros((4, 5, 1), np.int16), {339: [2]}), "1 x short samples"),
        (lambda: tiff(np.zeros((4, 5, 3), np.uint8), {262: [8]}), "LAB|labq"),
    ],
)
def test_other_samples_are_rejected(tmp_path: Path, make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageError, match=message):
        read_bytes(tmp_path, make())


def test_is_image_path() -> None:
    for name in (
        "a.png", "A.JPG", "b.c.jpeg", "x.webp", "x.TIF", "x.tiff", "x.bmp", "x.gif",
        "x.jfif", "x.JPE", "x.dib", "x.apng",
    ):  # fmt: skip
        assert is_image_path(name)
        assert is_image_path(Path("folder.d") / name)
    for name in ("a.txt", "png", ".png", "a.png.part", "folder.png/a", ""):
        assert not is_image_path(name)
