"""Colour profiles and other colour space information: kept, converted or reported as lost."""

import struct
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import pyvips

from espan.errors import ImageWarning
from espan.imaging import Image, read_image, write_image
from tests.image_files import (
    GRAY_PROFILE,
    RGB_PROFILE,
    by_pillow,
    chunk,
    photo,
    png,
    read_bytes,
    tiff,
)

pytestmark = pytest.mark.filterwarnings("error")


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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_a_damaged_profile_is_reported(tmp_path: Path, format: str) -> None:
    for damaged in (RGB_PROFILE[:200], RGB_PROFILE[:36] + b"nope" + RGB_PROFILE[40:]):
        data = by_pillow(PIL.Image.fromarray(photo(5, 6)), format, icc_profile=damaged)
        with pytest.warns(ImageWarning, match="colour profile is damaged and is dropped"):
            assert read_bytes(tmp_path, data).icc_profile is None


def test_profiles_that_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.warns(ImageWarning, match="BMP is written without the colour profile"):
        write_image(tmp_path / "a.bmp", Image(photo(5, 6), RGB_PROFILE))
    gray = PIL.Image.fromarray(photo(5, 6, 1)[..., 0])
    with pytest.warns(ImageWarning, match="profile is not for its 1 channels"):
        result = read_bytes(tmp_path, by_pillow(gray, "JPEG", icc_profile=RGB_PROFILE))
    assert result.icc_profile is None
    with pytest.warns(ImageWarning, match=r"a\.webp: WebP turns gray into RGB"):
        write_image(tmp_path / "a.webp", Image(photo(5, 6, 1), GRAY_PROFILE))
    assert read_image(tmp_path / "a.webp").icc_profile is None


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


def test_16_bit_cmyk_stays_16_bit(tmp_path: Path) -> None:
    inks = np.zeros((4, 1024, 4), np.uint16)
    inks[..., 3] = np.linspace(0, 65535, 1024)
    result = read_bytes(tmp_path, tiff(inks, {262: [5]})).pixels
    assert (result.dtype, result.shape) == (np.uint16, (4, 1024, 3))
    assert len(np.unique(result[0, :, 0])) > 512
    assert result[0, 0].min() > 65000
    assert result[0, -1].max() < 20000


def test_cmyk_with_alpha_keeps_it(tmp_path: Path) -> None:
    inks = photo(9, 11, 5)
    result = read_bytes(tmp_path, tiff(inks, {262: [5], 338: [2]})).pixels
    assert result.shape == (9, 11, 4)
    np.testing.assert_array_equal(result[..., 3], inks[..., 4])
    with pytest.warns(ImageWarning, match="1 extra sample"):
        opaque = read_bytes(tmp_path, tiff(inks, {262: [5], 338: [0]})).pixels
    np.testing.assert_array_equal(opaque, result[..., :3])


LINEAR = chunk(b"gAMA", struct.pack(">I", 100000))
SRGB_GAMMA = chunk(b"gAMA", struct.pack(">I", 45455))
SRGB_WHITE_AND_PRIMARIES = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
SRGB_PRIMARIES = chunk(b"cHRM", struct.pack(">8I", *SRGB_WHITE_AND_PRIMARIES))
P3 = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SRGB = chunk(b"sRGB", b"\0")
P3_BY_CODE = chunk(b"cICP", bytes([12, 13, 0, 1]))
SRGB_BY_CODE = chunk(b"cICP", bytes([1, 13, 0, 1]))
PQ = chunk(b"cICP", bytes([9, 16, 0, 1]))
HLG = chunk(b"cICP", bytes([9, 18, 0, 1]))
LIGHT = chunk(b"cLLI", struct.pack(">II", 10_000_000, 4_000_000))


def png_with(chunks: bytes, depth: int = 8, channels: int = 3) -> bytes:
    pixels = photo(5, 6, channels, 2**depth - 1)
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    return png(6, 5, depth, {1: 0, 2: 4, 3: 2, 4: 6}[channels], rows, chunks)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        (LINEAR, LINEAR),
        (SRGB_GAMMA + P3, SRGB_GAMMA + P3),
        (LINEAR + SRGB_PRIMARIES, LINEAR + SRGB_PRIMARIES),
        (P3_BY_CODE, P3_BY_CODE),
        (P3_BY_CODE + SRGB + LINEAR + LIGHT, P3_BY_CODE + LIGHT),
        (SRGB_GAMMA, b""),
        (SRGB_GAMMA + SRGB_PRIMARIES, b""),
        (SRGB + LINEAR + P3, b""),
        (SRGB_BY_CODE + LINEAR, b""),
        (chunk(b"gAMA", b"\0"), b""),
        (LINEAR[:-1] + b"?", b""),
    ],
)
def test_png_colour_chunks_stay_with_the_pixels(
    tmp_path: Path, chunks: bytes, kept: bytes, channels: int, depth: int
) -> None:
    image = read_bytes(tmp_path, png_with(chunks, depth, channels))
    assert image.png_colour == kept
    write_image(tmp_path / "b.png", image)
    again = read_image(tmp_path / "b.png")
    assert again.png_colour == kept
    np.testing.assert_array_equal(again.pixels, image.pixels)
    with PIL.Image.open(tmp_path / "b.png") as by_others:
        by_others.load()
        gamma = struct.unpack(">I", kept[8:12])[0] / 1e5 if kept[4:8] == b"gAMA" else None
        assert by_others.info.get("gamma") == gamma


def test_a_profile_comes_before_gamma(tmp_path: Path) -> None:
    with_profile = by_pillow(PIL.Image.fromarray(photo(5, 6)), "PNG", icc_profile=RGB_PROFILE)
    image = read_bytes(tmp_path, with_profile[:33] + LINEAR + P3 + with_profile[33:])
    assert (image.icc_profile, image.png_colour) == (RGB_PROFILE, b"")
    image = read_bytes(tmp_path, with_profile[:33] + P3_BY_CODE + with_profile[33:])
    assert (image.icc_profile, image.png_colour) == (RGB_PROFILE, P3_BY_CODE)
    write_image(tmp_path / "b.png", image)
    again = read_image(tmp_path / "b.png")
    assert (again.icc_profile, again.png_colour) == (RGB_PROFILE, P3_BY_CODE)


@pytest.mark.parametrize("suffix", ["jpg", "webp", "tif", "bmp"])
@pytest.mark.parametrize(
    ("chunks", "names"), [(LINEAR + P3, "gAMA, cHRM"), (P3_BY_CODE + LIGHT, "cICP, cLLI")]
)
def test_png_colour_chunks_lost_in_other_formats(
    tmp_path: Path, chunks: bytes, names: str, suffix: str
) -> None:
    image = read_bytes(tmp_path, png_with(chunks))
    with pytest.warns(ImageWarning, match=rf"a\.{suffix}: .* PNG colour chunks {names}; they are"):
        write_image(tmp_path / f"a.{suffix}", image)


@pytest.mark.parametrize(("chunks", "name"), [(PQ, "PQ"), (HLG, "HLG")])
def test_hdr_is_reported_and_preserved(tmp_path: Path, chunks: bytes, name: str) -> None:
    with pytest.warns(ImageWarning, match=rf"image\.bin: is HDR \({name}"):
        image = read_bytes(tmp_path, png_with(chunks, 16))
    write_image(tmp_path / "b.png", image)
    assert chunks in (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    ("space", "index", "profile", "warned"),
    [
        (1, "R98", None, False), (2, "R98", None, True), (65535, "R03", None, True),
        (65535, "R98", None, False), (65535, "R03", RGB_PROFILE, False),
    ],
)  # fmt: skip
def test_adobe_rgb_by_exif(
    tmp_path: Path, space: int, index: str, profile: bytes | None, warned: bool, format: str
) -> None:
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769).update({0xA001: space, 0xA005: {1: index}})
    image = PIL.Image.fromarray(photo(16, 16))
    data = by_pillow(image, format, exif=exif, icc_profile=profile or b"")
    if warned:
        with pytest.warns(ImageWarning, match=r"image\.bin: is Adobe RGB by its EXIF data"):
            read_bytes(tmp_path, data)
    else:
        assert read_bytes(tmp_path, data).icc_profile == profile


def test_tiff_colour_tags_are_reported(tmp_path: Path) -> None:
    with pytest.warns(ImageWarning, match=r"image\.bin: its TIFF colour tags"):
        read_bytes(tmp_path, tiff(photo(4, 5), {301: list(range(768))}))


def bmp_with_profile(profile: bytes, colour_space: bytes = b"DEBM") -> bytes:
    """A BMP file with a BITMAPV5HEADER and a profile after its pixels."""
    pixels = photo(4, 8)[::-1, :, ::-1].tobytes()
    header = struct.pack(
        "<IiiHHIIiiII16x4s48xIIII",
        124, 8, 4, 1, 24, 0, len(pixels), 0, 0, 0, 0, colour_space, 4, 124 + len(pixels),
        len(profile), 0,
    )  # fmt: skip
    return struct.pack("<2sI4xI", b"BM", 0, 138) + header + pixels + profile


def test_the_profile_of_a_bmp_file_is_read(tmp_path: Path) -> None:
    result = read_bytes(tmp_path, bmp_with_profile(RGB_PROFILE))
    assert result.icc_profile == RGB_PROFILE
    np.testing.assert_array_equal(result.pixels, photo(4, 8))
    assert read_bytes(tmp_path, bmp_with_profile(RGB_PROFILE, b"BGRs")).icc_profile is None
    assert read_bytes(tmp_path, bmp_with_profile(RGB_PROFILE)[:-1]).icc_profile is None
    with pytest.warns(ImageWarning, match="profile is not for its 3 channels"):
        assert read_bytes(tmp_path, bmp_with_profile(GRAY_PROFILE)).icc_profile is None
