"""Converting PIL images to arrays and back: modes, transparency and colour profiles."""

import struct
import warnings

import numpy as np
import pytest
import pyvips
from PIL import Image, ImageCms

from espan.errors import ImageWarning
from espan.imaging import read_image
from espan.models import Architecture
from espan.pil_images import to_array
from espan.upscaling import Upscaler
from tests.image_files import chunk, png

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
GRAY = SRGB[:16] + b"GRAY" + SRGB[20:]

pytestmark = pytest.mark.filterwarnings("error")


def cmyk_profile() -> bytes:
    return bytes(pyvips.Image.profile_load("cmyk"))


def colours(mode="RGB"):
    y, x = np.mgrid[0:36, 0:48]
    rgb = np.stack([x * 5, y * 7, 255 - x * 2 - y * 3], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


@pytest.mark.parametrize("profile", ["CMYK", None, "RGB", "damaged"])
def test_cmyk_is_converted_as_in_files(tmp_path, profile):
    """With its profile or, if none fits, the default profile."""
    data = {"CMYK": cmyk_profile(), "RGB": SRGB, "damaged": cmyk_profile()[:3000], None: None}
    path = tmp_path / "cmyk.tif"
    colours("CMYK").save(path, icc_profile=data[profile])
    pixels, finish = to_array(Image.open(path))
    np.testing.assert_array_equal(pixels, read_image(path).pixels)
    assert "icc_profile" not in finish(pixels).info


def test_the_profile_of_cmyk_is_used():
    other = bytearray(cmyk_profile())
    table = other.index(b"mft2")  # 53754 bytes: of inks to colours, of which half become black
    other[table + 13000 : table + 40000] = bytes(27000)
    image = colours("CMYK")
    image.info["icc_profile"] = bytes(other)
    assert (to_array(image)[0] != to_array(colours("CMYK"))[0]).any()


def test_lab_loses_its_profile():
    rgb = Image.fromarray(np.asarray(colours()) // 4 + 96)  # muted, inside the gamut of 8-bit LAB
    spaces = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(rgb, *spaces, outputMode="LAB")
    lab.info["icc_profile"] = LAB
    pixels, finish = to_array(lab)
    assert np.abs(pixels.astype(int) - np.asarray(rgb)).max() <= 4  # LAB in 8 bits is that coarse
    assert "icc_profile" not in finish(pixels).info


@pytest.mark.parametrize(
    ("mode", "becomes", "profile"),
    [
        ("1", "L", GRAY),
        ("L", "L", GRAY),
        ("LA", "LA", GRAY),
        ("La", "LA", GRAY),
        ("I;16", "I;16", GRAY),
        ("I;16B", "I;16", GRAY),
        ("P", "RGB", SRGB),
        ("PA", "RGBA", SRGB),
        ("RGB", "RGB", SRGB),
        ("RGBA", "RGBA", SRGB),
        ("RGBa", "RGBA", SRGB),
        ("RGBX", "RGB", SRGB),
        ("YCbCr", "RGB", SRGB),
        ("HSV", "RGB", SRGB),
    ],
)
def test_profiles_that_fit_are_kept(mode, becomes, profile):
    image = Image.new(mode, (3, 2))
    image.info["icc_profile"] = profile
    pixels, finish = to_array(image)
    assert pixels.dtype == (np.uint16 if mode.startswith("I") else np.uint8)
    result = finish(pixels)
    assert result.mode == becomes
    assert result.info["icc_profile"] == profile


@pytest.mark.parametrize(
    ("mode", "profile"),
    [("L", SRGB), ("I;16", SRGB), ("RGB", b"profile"), ("RGB", LAB), ("P", GRAY), ("RGBA", GRAY)],
)
def test_profiles_that_do_not_fit_are_dropped_with_a_warning(mode, profile):
    image = Image.new(mode, (3, 2))
    image.info["icc_profile"] = profile
    with pytest.warns(ImageWarning, match=f"profile of the {mode} image is not for its"):
        pixels, finish = to_array(image)
    assert "icc_profile" not in finish(pixels).info


def test_cmyk_converted_by_pillow_with_its_old_profile_warns():
    image = colours("CMYK")
    image.info["icc_profile"] = cmyk_profile()
    with pytest.warns(ImageWarning, match="is dropped"):
        to_array(image.convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "transparency", "becomes"),
    [
        ("1", 0, "LA"),
        ("L", 0, "LA"),
        ("RGB", (0, 0, 0), "RGBA"),
        ("P", 0, "RGBA"),
        ("P", b"\0", "RGBA"),
    ],
)
def test_a_transparent_colour_becomes_alpha(mode, transparency, becomes):
    image = Image.new(mode, (3, 2))
    image.putpixel((1, 0), (9, 9, 9) if mode == "RGB" else 1)
    image.info["transparency"] = transparency
    pixels, finish = to_array(image)
    assert pixels[0, :, -1].tolist() == [0, 255, 0]
    assert finish(pixels).mode == becomes


def test_a_palette_with_alpha():
    image = Image.new("RGBA", (3, 2), (10, 20, 30, 100)).quantize(4)
    assert image.mode == "P"
    assert "transparency" not in image.info
    pixels, _ = to_array(image)
    np.testing.assert_array_equal(pixels, np.broadcast_to((10, 20, 30, 100), (2, 3, 4)))


def test_premultiplied_alpha_is_divided_out():
    image = Image.new("RGBA", (3, 2), (200, 100, 50, 51)).convert("RGBa")
    pixels, _ = to_array(image)
    np.testing.assert_array_equal(pixels, np.broadcast_to((200, 100, 50, 51), (2, 3, 4)))


def test_16_bit_gray_with_a_transparent_level():
    image = Image.new("I;16", (3, 2))
    image.info["transparency"] = 0
    with pytest.warns(ImageWarning, match="no 16-bit gray with alpha"):
        pixels, _ = to_array(image)
    assert pixels.shape == (2, 3, 1)


def test_ordinary_images_give_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"):
            to_array(Image.new(mode, (1, 1)))


LINEAR = chunk(b"gAMA", struct.pack(">I", 100000))
SRGB_GAMMA = chunk(b"gAMA", struct.pack(">I", 45455))
P3 = chunk(b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))
SRGB_CHUNK = chunk(b"sRGB", b"\0")
P3_BY_CODE = chunk(b"cICP", bytes([12, 13, 0, 1]))


@pytest.mark.parametrize(
    ("chunks", "named", "known_to_pillow"),
    [
        (LINEAR, "gAMA", True),
        (SRGB_GAMMA + P3, "cHRM", True),
        (LINEAR + P3, "gAMA, cHRM", True),
        (P3_BY_CODE, "cICP", False),
        (SRGB_GAMMA, "", True),
        (SRGB_CHUNK + LINEAR, "", True),
    ],
    ids=["linear", "P3", "linear P3", "P3 by code", "sRGB gamma", "sRGB"],
)
def test_unsupported_colour_information(chunks, named, known_to_pillow, make_network, tmp_path):
    """From a file, or opened by Pillow, which does not read all chunks."""
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 4, 8, 2, (b"\0" + bytes(12)) * 4, chunks))
    upscaler = Upscaler(make_network(Architecture(8, (3, 2), scale=2)), device="cpu")
    for image in (path, Image.open(path)) if known_to_pillow else (path,):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            upscaler(image)
        assert len(caught) == bool(named)
        for warning in caught:
            assert warning.category is ImageWarning
            assert named.split(", ")[-1] in str(warning.message)
