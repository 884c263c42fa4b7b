"""Image files: what is read, what is refused, and what a failed write leaves behind."""

import io
import os
import resource
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps
import pytest
import pyvips

from espan.errors import ImageError
from espan.imaging import Image, ImageWarning, check_output, is_image_path, read_image, write_image
from espan.imaging import image_write as writer

RGB_PROFILE = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
GRAY_PROFILE = RGB_PROFILE[:16] + b"GRAY" + RGB_PROFILE[20:]
pytestmark = pytest.mark.filterwarnings("error")


def photo(height: int, width: int, channels: int = 3, top: int = 255) -> np.ndarray:
    """Smooth pixels, 0 to top, that differ in every row, column and channel."""
    y, x, c = np.ogrid[:height, :width, :channels]
    wave = np.sin(y / 9 + c) + np.cos(x / 7 - c) + (x + 2 * y) / (width + 2 * height)
    wave = (wave - wave.min()) / (wave.max() - wave.min())
    return np.rint(wave * top).astype(np.uint8 if top == 255 else np.uint16)


def ramp(channels: int, dtype: type) -> np.ndarray:
    """All values of the type in the first channel, in other orders in the others."""
    count = int(np.iinfo(dtype).max) + 1
    values = np.arange(count)
    planes = [values, values[::-1], (values * 17 + 5) % count, (values * 101) % count]
    return np.stack(planes[:channels], -1).reshape(-1, 128, channels).astype(dtype)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file from rows that begin with their filter byte."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + body


def tiff(pixels: np.ndarray, tags: dict[int, list[int]]) -> bytes:
    """An uncompressed little-endian TIFF file of one strip; tags are added as 16-bit numbers."""
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    entries: dict[int, list[int]] = {
        256: [width], 257: [height], 258: [pixels.itemsize * 8] * channels, 259: [1],
        262: [2 if channels >= 3 else 1], 277: [channels], 278: [height],
    }  # fmt: skip
    entries |= tags
    tail = b""
    start = 8 + len(data) + 2 + 12 * (len(entries) + 2) + 4
    table = []
    for tag, values in entries.items():
        packed = struct.pack(f"<{len(values)}H", *values)
        if len(packed) > 4:
            where = struct.pack("<I", start + len(tail))
            tail += packed
        else:
            where = packed.ljust(4, b"\0")
        table.append((tag, struct.pack("<HHI", tag, 3, len(values)) + where))
    for tag, value in ((273, 8), (279, len(data))):
        table.append((tag, struct.pack("<HHII", tag, 4, 1, value)))
    fields = b"".join(entry for _, entry in sorted(table))
    directory = struct.pack("<H", len(table)) + fields + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + tail


def by_pillow(image: PIL.Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read_bytes(folder: Path, data: bytes, name: str = "image.bin") -> Image:
    path = folder / name
    path.write_bytes(data)
    return read_image(path)


# Reading


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
def test_small_depths_fill_the_range(tmp_path: Path, depth: int) -> None:
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


def test_premultiplied_alpha_is_divided_out(tmp_path: Path) -> None:
    alpha = np.full((5, 6, 1), 128, np.uint8)
    colours = photo(5, 6)
    stored = np.rint(colours * (128 / 255)).astype(np.uint8)
    data = tiff(np.concatenate([stored, alpha], -1), {338: [1]})
    result = read_bytes(tmp_path, data).pixels
    np.testing.assert_array_equal(result[..., 3:], alpha)
    assert np.abs(result[..., :3].astype(int) - colours).max() <= 2


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize("embedded", [False, True])
def test_cmyk_becomes_srgb(tmp_path: Path, format: str, embedded: bool) -> None:
    inks = np.zeros((40, 50, 4), np.uint8)
    inks[:, 10:20, 0] = inks[:, 20:30, 1] = inks[:, 30:40, 2] = inks[:, 40:, 3] = 255
    profile = bytes(pyvips.Image.profile_load("cmyk")) if embedded else None
    options = {"quality": 100} if format == "JPEG" else {}
    image = PIL.Image.fromarray(inks, "CMYK")
    result = read_bytes(tmp_path, by_pillow(image, format, icc_profile=profile, **options))
    assert result.icc_profile is None
    white, cyan, magenta, yellow, black = (result.pixels[20, x] for x in (4, 15, 25, 35, 45))
    assert white.min() > 250
    assert cyan.argmin() == 0
    assert cyan[0] < 100
    assert magenta.argmin() == 1
    assert magenta[1] < 100
    assert yellow.argmin() == 2
    assert yellow[2] < 100
    assert black.max() < 80


def test_cmyk_of_16_bits_stays_at_16_bits(tmp_path: Path) -> None:
    inks = np.zeros((4, 1024, 4), np.uint16)
    inks[..., 3] = np.linspace(0, 65535, 1024)
    result = read_bytes(tmp_path, tiff(inks, {262: [5]})).pixels
    assert (result.dtype, result.shape) == (np.uint16, (4, 1024, 3))
    assert len(np.unique(result[0, :, 0])) > 512
    assert result[0, 0].min() > 65000
    assert result[0, -1].max() < 20000


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


# Refusing


def sample(format: str, size: tuple[int, int] = (60, 80)) -> bytes:
    image = PIL.Image.fromarray(photo(*size))
    options = {"compression": "tiff_lzw"} if format == "TIFF" else {}
    return by_pillow(image.quantize(64) if format == "GIF" else image, format, **options)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("missing.png", "no such file"),
        ("folder", "is a folder"),
        ("empty.png", "is empty"),
        ("text.png", "begins with b'not an i'; a PNG, JPEG"),
        ("pipe", "not a regular file"),
        ("x" * 300, "cannot be read"),
        ("text.png/below.png", "cannot be read"),
    ],
)
def test_what_is_no_image(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image at all")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert told in str(caught.value)


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
    assert message.startswith(f"{tmp_path / 'image.bin'}: damaged, truncated or unusual {format} ")
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_damage_never_escapes_as_another_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], format: str
) -> None:
    """Every tenth prefix, and bytes overwritten at random: an image, or an ImageError."""
    data = sample(format, (16, 20))
    whole = read_bytes(tmp_path, data).pixels
    for length in range(0, len(data), 10):
        try:
            result = read_bytes(tmp_path, data[:length]).pixels
        except ImageError:
            continue
        # Only what follows the last pixel may be missing.
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
        frame = data.index(b",\0\0\0\0") + 5  # of the frame, the canvas alone is not believed
        data[6:10] = data[frame : frame + 4] = struct.pack("<HH", width, height)
    else:
        return tiff(photo(4, 5), {256: [width], 257: [height], 278: [4]})
    return bytes(data)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_a_header_that_claims_too_much(tmp_path: Path, format: str) -> None:
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
    ("make", "told"),
    [
        (lambda: tiff(np.zeros((4, 5, 3), np.float32), {339: [3, 3, 3]}), "3 x float samples"),
        (lambda: tiff(np.zeros((4, 5, 1), np.float64), {339: [3]}), "unusual TIFF file"),
        (lambda: tiff(np.zeros((4, 5, 1), np.uint32), {}), "1 x uint samples"),
        (lambda: tiff(np.zeros((4, 5, 1), np.int16), {339: [2]}), "1 x short samples"),
        (lambda: tiff(np.zeros((4, 5, 7), np.uint8), {338: [0] * 4}), "7 x uchar samples"),
        (lambda: tiff(np.zeros((4, 5, 3), np.uint8), {262: [8]}), "LAB|labq"),
    ],
)
def test_other_samples_are_refused(tmp_path: Path, make, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageError, match=told):
        read_bytes(tmp_path, make())


# Writing


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("suffix", ["png", "tif", "tiff"])
def test_all_values_come_back(tmp_path: Path, suffix: str, dtype: type, channels: int) -> None:
    pixels = ramp(channels, dtype)
    write_image(tmp_path / f"a.{suffix}", Image(pixels))
    result = read_image(tmp_path / f"a.{suffix}").pixels
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(s, c) for s in ("png", "tiff", "bmp") for c in (1, 2, 3, 4) if s != "bmp" or c in (1, 3)],
)
def test_others_can_read_what_is_written(tmp_path: Path, suffix: str, channels: int) -> None:
    pixels = photo(33, 65, channels)
    write_image(tmp_path / f"a.{suffix}", Image(pixels, dpi=(150, 300)))
    with PIL.Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
        np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
        assert image.info["dpi"] == pytest.approx((150, 300), rel=1e-3)
        assert "exif" not in image.info


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


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [("png", 1), ("png", 3), ("jpg", 1), ("jpg", 3), ("tif", 1), ("tif", 3), ("webp", 3)],
)
def test_the_colour_profile_is_kept(tmp_path: Path, suffix: str, channels: int) -> None:
    profile = RGB_PROFILE if channels == 3 else GRAY_PROFILE
    path = tmp_path / f"a.{suffix}"
    write_image(path, Image(photo(20, 30, channels), profile, (96, 96)))
    result = read_image(path)
    assert result.icc_profile == profile
    with PIL.Image.open(path) as image:
        assert image.info["icc_profile"] == profile
        assert "exif" not in image.info
    if suffix != "webp":
        assert result.dpi == pytest.approx((96, 96), abs=0.5)


def test_profiles_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.warns(ImageWarning, match="BMP has no place for the colour profile"):
        write_image(tmp_path / "a.bmp", Image(photo(5, 6), RGB_PROFILE))
    gray = PIL.Image.fromarray(photo(5, 6, 1)[..., 0])
    with pytest.warns(ImageWarning, match="profile is not for its 1 channels"):
        result = read_bytes(tmp_path, by_pillow(gray, "JPEG", icc_profile=RGB_PROFILE))
    assert result.icc_profile is None
    with pytest.warns(ImageWarning, match=r"a\.webp: WebP turns gray into RGB"):
        write_image(tmp_path / "a.webp", Image(photo(5, 6, 1), GRAY_PROFILE))
    assert read_image(tmp_path / "a.webp").icc_profile is None


def test_an_image_is_checked() -> None:
    for pixels, told in [
        (np.zeros((4, 5, 3)), "float64"),
        (np.zeros((4, 5), np.uint8), r"\(4, 5\)"),
        (np.zeros((4, 5, 5), np.uint8), r"\(4, 5, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"\(0, 5, 3\)"),
        (np.zeros((4, 5, 3), np.uint8)[:, ::2], "C-contiguous"),
    ]:
        with pytest.raises(ImageError, match=told):
            Image(pixels)
    with pytest.raises(ImageError, match="profile is for 'GRAY' pixels, the image has 3"):
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
def test_the_format_is_chosen(tmp_path: Path, name: str, format: str | None, kind: str) -> None:
    assert check_output(name, 5, 4, 3, format=format) == kind
    write_image(tmp_path / name, Image(photo(4, 5)), format=format)
    with PIL.Image.open(tmp_path / name) as image:
        assert image.format == kind.upper()


@pytest.mark.parametrize(
    ("name", "format", "shape", "told"),
    [
        (
            "a.gif",
            None,
            (4, 5, 3),
            r"suffix '\.gif'.*known: png, jpg, jpeg, .*, bmp",
        ),
        ("a", None, (4, 5, 3), "without a suffix.*known: png"),
        ("a.png", "heic", (4, 5, 3), "format 'heic'.*known: png"),
        ("a.jpg", None, (4, 5, 4), "JPEG has no alpha channel.*write png, webp or tiff"),
        ("a.bmp", None, (4, 5, 2), "BMP has no alpha channel"),
        ("a.webp", None, (1, 16384, 1), "16384 x 1 pixels are too many for WEBP.*16383"),
        ("a.jpg", None, (65501, 1, 1), "1 x 65501 pixels are too many for JPEG.*65500"),
        ("gone/a.png", None, (4, 5, 3), r"gone/a\.png: the folder to write into does not exist"),
        ("folder.png", None, (4, 5, 3), "not a regular file"),
        ("pipe.png", None, (4, 5, 3), "not a regular file"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, name: str, format: str | None, shape: tuple[int, int, int], told: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ImageError, match=told) as caught:
        write_image(tmp_path / name, Image(np.zeros(shape, np.uint8)), format=format)
    assert str(tmp_path / name) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


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


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_a_full_disk(tmp_path: Path, suffix: str) -> None:
    """A limit on the size of files stops the system's write midway, as a full disk does."""
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


def test_is_image_path() -> None:
    for name in (
        "a.png",
        "A.JPG",
        "b.c.jpeg",
        "x.webp",
        "x.TIF",
        "x.tiff",
        "x.bmp",
        "x.gif",
        "x.jfif",
        "x.JPE",
        "x.dib",
        "x.apng",
    ):
        assert is_image_path(name)
        assert is_image_path(Path("folder.d") / name)
    for name in ("a.txt", "png", ".png", "a.png.part", "folder.png/a", ""):
        assert not is_image_path(name)
