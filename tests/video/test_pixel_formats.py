"""The layouts of pixel formats, and the choice of an encoder's."""

import pytest

pytest.importorskip("av", reason="PyAV is not installed: the extra `video`")

import av

from espan.video.layout import LAYOUTS
from espan.video.pixel_formats import closest, has_alpha, layout_of


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("yuv420p", "yuv420p"),
        ("yuvj422p", "yuv422p"),
        ("nv12", "yuv420p"),
        ("p010le", "yuv420p10le"),
        ("yuyv422", "yuv422p"),
        ("yuva444p10le", "yuv444p10le"),
        ("yuv411p", "yuv422p"),
        ("rgb24", "gbrp"),
        ("bgr0", "gbrp"),
        ("pal8", "gbrp"),
        ("rgb565le", "gbrp"),
        ("rgb48be", "gbrp16le"),
        ("gbrpf32le", "gbrp16le"),
        ("gray", "gray"),
        ("monow", "gray"),
        ("gray12be", "gray12le"),
        ("yuv420p10be", "yuv420p10le"),
    ],
)
def test_layout(name, layout):
    assert layout_of(name) == LAYOUTS[layout]


def test_every_layout_is_a_pixel_format():
    """Those that FFmpeg lacks are never found by `layout_of`."""
    known = {f.name for c in ("rawvideo", "ffv1") for f in av.Codec(c, "w").video_formats or ()}
    missing = {name for name in LAYOUTS if name not in known and not exists(name)}
    assert missing <= {f"yuv440p{bits}le" for bits in (9, 14, 16)}


def exists(name):
    try:
        return bool(av.VideoFormat(name))
    except ValueError:
        return False


def test_alpha():
    assert [has_alpha(n) for n in ("yuva420p", "rgba", "pal8", "bgr0", "yuv420p")] == [
        True, True, False, False, False,
    ]  # fmt: skip


X264 = ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12", "yuv420p10le", "gray"]


@pytest.mark.parametrize(
    ("source", "names", "chosen"),
    [
        ("yuv420p", X264, "yuv420p"),
        ("yuv422p", X264, "yuv422p"),
        ("yuv440p", X264, "yuv444p"),
        ("yuv420p10le", X264, "yuv420p10le"),
        ("yuv422p10le", X264, "yuv420p10le"),  # depth before chroma
        ("yuv420p12le", X264, "yuv420p10le"),
        ("gray", X264, "yuv420p"),
        ("gbrp", X264, "yuv444p"),
        ("gbrp", [*X264, "gbrp"], "gbrp"),
        ("gbrp", [*X264, "bgra", "bgr0"], "bgr0"),
        ("yuv444p", ["gbrp", "yuv420p"], "yuv420p"),
        ("yuv420p10le", ["nv12", "p010le", "p016le", "yuv444p"], "p010le"),
        ("yuv420p", ["yuv422p10le", "yuv444p10le"], "yuv422p10le"),
        ("yuv420p", ["cuda", "qsv", "yuv420p"], "yuv420p"),  # in a GPU's memory
    ],
)
def test_closest(source, names, chosen):
    found = closest(LAYOUTS[source], names)
    assert found == (chosen, layout_of(chosen))


@pytest.mark.parametrize("maker", ["nvenc", "qsv", "amf"])
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_encoders_on_gpus_take_frames_of_the_host(codec, maker):
    try:
        names = [form.name for form in av.Codec(f"{codec}_{maker}", "w").video_formats]
    except av.codec.codec.UnknownCodecError:
        pytest.skip("not in this build of FFmpeg")
    for source in ("yuv420p", "yuv420p10le", "yuv444p"):
        found = closest(LAYOUTS[source], names)
        assert found is not None
        assert found[0] in names


def test_xyz_is_read_as_rgb():
    assert layout_of("xyz12le") is LAYOUTS["gbrp12le"]


def test_nothing_is_close():
    assert closest(LAYOUTS["yuv420p"], ["rgb24", "gray", "yuva420p"]) is None
