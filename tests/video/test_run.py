"""Whole runs of `espan video` on small files: what is kept, and the sentences for bad input."""

import itertools
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

pytest.importorskip("av", reason="PyAV is not installed: the extra `video`")

import av

from espan.errors import EspanError
from espan.upscaling import Upscaler
from espan.video import run
from espan.video.colour import to_rgb
from espan.video.decode import read_frames
from espan.video.planes import read_planes
from espan.video.source import describe
from tests.video.clips import frame_times, make_clip, packets, stretch_audio


def pixels(path):
    """The RGB of each frame, as espan reads it."""
    source = describe(path)
    return [
        to_rgb(read_planes(frame, source.layout), source.layout, source.colour)
        for frame in read_frames(source)
    ]


@pytest.mark.parametrize(
    ("ending", "pix_fmt"), [("mkv", "yuv444p"), ("mkv", "bgr0"), ("mkv", "yuv420p10le")]
)
def test_the_frames_are_those_of_upscaler(tmp_path, upscale, network, ending, pix_fmt):
    """Stored without loss: the difference is that of the samples' rounding."""
    path = make_clip(tmp_path / "a.mkv", codec="ffv1", pix_fmt=pix_fmt, frames=3)
    upscale(path, tmp_path / f"b.{ending}", codec="ffv1")
    found = pixels(tmp_path / f"b.{ending}")
    expected = Upscaler(network)(pixels(path))
    assert len(found) == 3
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        difference = (a.double() - b.double()).abs()
        if pix_fmt == "bgr0":
            assert difference.max() == 0
        elif pix_fmt == "yuv444p":  # the luma of 8 bits has 219 levels
            assert difference.max() <= 2
        else:  # chroma is averaged
            assert difference.mean() < 2 / 1023


def test_every_stream_is_kept(tmp_path, upscale):
    path = make_clip(
        tmp_path / "a.mkv",
        audio=("libopus", 48000, 0.5),
        subtitle=True,
        attachment=True,
        chapters=[(0, 0.2, "one"), (0.2, 0.48, "two")],
    )
    upscale(path, tmp_path / "b.mkv")
    for kind in ("audio", "subtitle"):
        assert packets(tmp_path / "b.mkv", kind) == packets(path, kind)
    assert frame_times(tmp_path / "b.mkv") == frame_times(path)
    with av.open(str(path)) as before, av.open(str(tmp_path / "b.mkv")) as after:
        assert [s.type for s in after.streams] == [s.type for s in before.streams]
        assert after.streams.attachments[0].data == b"not a font"
        assert after.streams.attachments[0].mimetype == "application/x-truetype-font"
        assert after.chapters() == before.chapters()
        assert after.metadata["title"] == "a test"
        assert after.streams.video[0].metadata["title"] == "moving waves"
        assert after.streams.audio[0].language == "fra"
        assert (after.streams.video[0].width, after.streams.video[0].height) == (192, 128)
        for a, b in zip(after.streams, before.streams, strict=True):
            assert a.disposition == b.disposition


def test_a_cover_is_kept(tmp_path, upscale):
    """It is an attachment in Matroska, and a video stream with one picture in MP4."""
    path = tmp_path / "a.mkv"
    picture = av.VideoFrame(16, 16, "yuvj420p")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 16, 16, "yuvj420p"
    encoder.time_base = Fraction(1, 25)
    (jpeg,) = [bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)]]
    with av.open(str(make_clip(tmp_path / "plain.mkv"))) as plain, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(plain.streams.video[0], opaque=True)
        out.add_attachment("cover.jpg", "image/jpeg", jpeg)
        for packet in plain.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    for ending in ("mkv", "mp4"):
        target = tmp_path / f"b.{ending}"
        upscale(path, target)
        with av.open(str(target)) as after:
            (cover,) = [s for s in after.streams if s.disposition & 1024]
            assert next(bytes(p) for p in after.demux(cover) if p.size) == jpeg
            assert describe(target).codec == "h264"
        path = target


@pytest.mark.parametrize("ending", ["mp4", "mkv", "mov"])
def test_variable_frame_rate(tmp_path, upscale, ending):
    """Times on no grid, more than one segment; exact in MP4, in milliseconds in Matroska."""
    times = np.random.default_rng(0).integers(90, 9000, 12).cumsum().tolist()
    path = make_clip(tmp_path / "a.mp4", times=times, time_base=Fraction(1, 90000))
    upscale(path, tmp_path / f"b.{ending}")
    before, after = frame_times(path), frame_times(tmp_path / f"b.{ending}")
    start = before[0]  # the earliest time becomes 0
    assert len(set(before)) == 12
    for a, b in zip(after, before, strict=True):
        assert abs(a - (b - start)) <= (Fraction(1, 2000) if ending == "mkv" else 0)


def test_rates_are_kept(tmp_path, upscale):
    path = make_clip(tmp_path / "a.mp4", rate=Fraction(30000, 1001))
    upscale(path, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as after:
        assert after.streams.video[0].average_rate == Fraction(30000, 1001)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("rotation", [90, 180])
def test_rotation_and_aspect(tmp_path, upscale, ending, rotation):
    path = make_clip(tmp_path / "a.mp4", aspect=Fraction(4, 3), rotation=rotation)
    upscale(path, tmp_path / f"b.{ending}")
    source = describe(tmp_path / f"b.{ending}")
    assert source.aspect == Fraction(4, 3)
    assert (source.width, source.height) == (192, 128)
    with av.open(str(tmp_path / f"b.{ending}")) as after:
        assert abs(next(after.decode(video=0)).rotation) == rotation
    assert source.display_matrix[:6] == describe(path).display_matrix[:6]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "ending"),
    [
        ("libx264", "yuv420p", "mp4"),
        ("libx265", "yuv420p10le", "mkv"),
        ("libx264", "yuv444p", "mov"),
        ("libsvtav1", "yuv420p10le", "mp4"),
        ("libvpx-vp9", "yuv420p", "webm"),
    ],
)
@pytest.mark.parametrize(
    "colours", [(1, 1, 1, 1), (5, 6, 5, 1), (9, 14, 9, 1), (1, 1, 1, 2)], ids=str
)
def test_colours_are_carried_over(tmp_path, upscale, codec, pix_fmt, ending, colours):
    """Primaries, transfer, matrix, range, depth and chroma resolution."""
    path = make_clip(
        tmp_path / "a.mkv", width=64, height=64, frames=2, codec="ffv1", pix_fmt=pix_fmt,
        colours=colours,
    )  # fmt: skip
    notes = upscale(path, tmp_path / f"b.{ending}", codec=codec)
    before, after = describe(path), describe(tmp_path / f"b.{ending}")
    assert after.colour == before.colour
    assert (after.colour.primaries, after.colour.transfer, after.colour.matrix) == colours[:3]
    assert after.colour.full_range == (colours[3] == 2)
    assert after.layout == before.layout
    assert not notes
    for a, b in zip(pixels(tmp_path / f"b.{ending}"), pixels(path), strict=True):
        scale = 255 if a.dtype == torch.uint8 else 1
        means = [x.double().mean(dim=(1, 2)) / scale for x in (a, b)]
        assert (means[0] - means[1]).abs().max() < 0.5  # the test's network has random weights


def test_unspecified_matrix_is_written(tmp_path, upscale):
    """Players assume BT.601 for a small video, and would assume BT.709 for the enlarged one."""
    path = make_clip(tmp_path / "a.mp4", frames=2)
    assert describe(path).colour.matrix == 6
    upscale(path, tmp_path / "b.mp4")
    with av.open(str(tmp_path / "b.mp4")) as after:
        frame = next(after.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (6, 1)


@pytest.mark.parametrize("location", ["left", "center", "topleft"])
def test_chroma_location(tmp_path, upscale, location):
    path = make_clip(tmp_path / "a.mp4", frames=2, options={"chroma_sample_location": location})
    assert describe(path).colour.chroma == location
    upscale(path, tmp_path / "b.mp4")
    assert describe(tmp_path / "b.mp4").colour.chroma == location


def test_hdr(tmp_path, upscale):
    """The mastering display and the light level are passed on, with a warning."""
    parameters = (
        "log-level=error:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)"
        "L(10000000,50):max-cll=1000,400"
    )
    path = make_clip(
        tmp_path / "a.mp4", width=64, height=64, frames=2, codec="libx265", pix_fmt="yuv420p10le",
        colours=(9, 16, 9, 1), options={"x265-params": parameters},
    )  # fmt: skip
    before = describe(path).side_data
    assert struct.unpack_from("2I", before["CONTENT_LIGHT_LEVEL"]) == (1000, 400)
    for codec, ending in (("libx265", "mkv"), ("libx264", "mp4"), ("libsvtav1", "mp4")):
        target = tmp_path / f"{codec}.{ending}"
        notes = upscale(path, target, codec=codec)
        assert notes == [
            "the video is HDR (PQ): it is upscaled like SDR, on which the networks are trained"
        ]
        source = describe(target)
        assert (source.colour, source.layout.bits) == (describe(path).colour, 10)
        assert source.side_data["CONTENT_LIGHT_LEVEL"] == before["CONTENT_LIGHT_LEVEL"]
        numbers = [
            struct.unpack_from("22i", data["MASTERING_DISPLAY_METADATA"])
            for data in (source.side_data, before)
        ]
        for i in range(0, 20, 2):
            a, b = (n[i] / n[i + 1] for n in numbers)
            assert a == pytest.approx(b, abs=1e-4)
    notes = upscale(path, tmp_path / "ffv1.mkv", codec="ffv1")
    assert any("HDR metadata" in note for note in notes)


def test_from_and_to(tmp_path, upscale):
    path = make_clip(
        tmp_path / "a.mp4", frames=50, audio=("aac", 48000, 2.0),
        chapters=[(0, 1, "one"), (1, 1.5, "two"), (1.5, 2, "three")],
    )  # fmt: skip
    upscale(path, tmp_path / "b.mp4", start=Fraction("0.41"), end=Fraction("1.2"))
    times = frame_times(path)
    kept = [t for t in times if Fraction("0.41") <= t < Fraction("1.2")]
    assert frame_times(tmp_path / "b.mp4") == [t - kept[0] for t in kept]
    audio = [(t - kept[0], data) for t, data in packets(path, "audio") if kept[0] <= t < 1.2]
    after = packets(tmp_path / "b.mp4", "audio")
    assert [data for _, data in after] == [data for _, data in audio]
    for (a, _), (b, _) in zip(after, audio, strict=True):
        assert abs(a - b) <= Fraction(1, 96000)
    with av.open(str(tmp_path / "b.mp4")) as container:
        chapters = [
            (float(c["start"] * c["time_base"]), float(c["end"] * c["time_base"]))
            for c in container.chapters()
        ]
    start = float(kept[0])
    assert np.abs(np.array(chapters) - [(0, 1 - start), (1 - start, 1.2 - start)]).max() < 1e-3


def test_an_hour_stays_in_sync(tmp_path, upscale):
    """Over an hour, every packet of audio keeps its time to the sample, and every frame its tick.

    The frames are few, on the grid of 30000/1001 frames a second.
    """
    times = [1001 * round(i * 3600 * 30 / 40) for i in range(40)]
    path = stretch_audio(
        make_clip(
            tmp_path / "short.mp4", frames=40, times=times, time_base=Fraction(1, 30000),
            audio=("flac", 44100, 1.0), audio_offset=777,
        ),
        tmp_path / "a.mp4",
        seconds=3600,
        every=5,
    )  # fmt: skip
    for ending, unit in (("mp4", 0), ("mkv", Fraction(1, 2000))):
        target = tmp_path / f"b.{ending}"
        upscale(path, target)
        before, after = packets(path, "audio"), packets(target, "audio")
        assert before[-1][0] > 3599
        assert [data for _, data in after] == [data for _, data in before]
        assert max(abs(a - b) for (a, _), (b, _) in zip(after, before, strict=True)) <= unit
        frames = zip(frame_times(target), frame_times(path), strict=True)
        assert max(abs(a - b) for a, b in frames) <= unit


def test_a_start_after_zero(tmp_path, upscale):
    """MPEG transport streams begin anywhere; the offset of audio to video stays."""
    path = make_clip(tmp_path / "a.ts", codec="mpeg2video", audio=("mp2", 48000, 0.5))
    upscale(path, tmp_path / "b.mp4")
    shifts = {
        a - b
        for kind in ("audio", "video")
        for a, b in zip(
            sorted(time for time, _ in packets(tmp_path / "b.mp4", kind)),
            sorted(time for time, _ in packets(path, kind)),
            strict=True,
        )
    }
    earliest = min(packets(path, kind)[0][0] for kind in ("audio", "video"))
    assert earliest > 0
    assert max(abs(shift + earliest) for shift in shifts) <= Fraction(1, 96000)


def test_interlaced_and_transparent_video_is_reported(tmp_path, upscale):
    path = make_clip(
        tmp_path / "a.mkv", codec="libx264", options={"x264-params": "tff=1"}, frames=3
    )
    assert "interlaced" in " ".join(upscale(path, tmp_path / "b.mkv"))
    path = make_clip(tmp_path / "c.mkv", codec="ffv1", pix_fmt="yuva420p", frames=3)
    assert "transparency is not kept" in " ".join(upscale(path, tmp_path / "d.mkv"))
    path = make_clip(tmp_path / "e.webm", codec="libvpx-vp9", pix_fmt="yuva420p", frames=3)
    assert "transparency is not kept" in " ".join(upscale(path, tmp_path / "f.webm"))
    with av.open(str(tmp_path / "f.webm")) as result:
        assert "ALPHA_MODE" not in {key.upper() for key in result.streams.video[0].metadata}


@pytest.mark.parametrize("ending", ["avi", "asf"])
def test_reordered_frames_in_containers_without_their_times(tmp_path, upscale, ending):
    path = make_clip(tmp_path / f"a.{ending}", frames=40, options={"bf": "3"})
    assert upscale(path, tmp_path / "b.mkv") == []
    times = frame_times(tmp_path / "b.mkv")
    steps = {b - a for a, b in itertools.pairwise(times)}
    assert len(times) == 40
    assert all(abs(step - Fraction(1, 25)) <= Fraction(1, 1000) for step in steps)
    assert upscale(path, tmp_path / "c.mkv", start=Fraction(1)) == []
    assert len(frame_times(tmp_path / "c.mkv")) in (15, 16)  # the file may begin at a frame's time


def test_times_that_go_back(tmp_path, upscale):
    """Video and audio both end where a file of the same length was appended."""
    path = make_clip(tmp_path / "a.ts", codec="mpeg2video", frames=50, audio=("mp2", 48000, 2.0))
    (tmp_path / "two.ts").write_bytes(2 * path.read_bytes())
    notes = upscale(tmp_path / "two.ts", tmp_path / "b.mkv")
    assert "the times of the video go back, as where files were concatenated" in " ".join(notes)
    assert "after more than 1 s, packets are left out until they catch up" in notes[-1]
    upscale(path, tmp_path / "c.mkv")
    assert len(frame_times(tmp_path / "b.mkv")) == len(frame_times(tmp_path / "c.mkv"))
    sound = packets(tmp_path / "b.mkv", "audio")
    assert abs(len(sound) - len(packets(tmp_path / "c.mkv", "audio"))) <= 1


@pytest.mark.parametrize("ending", ["mkv", "mp4", "webm"])
def test_a_chapter_that_begins_before_the_first_frame(tmp_path, upscale, ending):
    path = make_clip(
        tmp_path / "a.mkv",
        frames=10,
        times=[40 + 40 * i for i in range(10)],
        time_base=Fraction(1, 1000),
        chapters=[(0, 0.2, "one"), (0.2, 0.44, "two")],
    )
    upscale(path, tmp_path / f"b.{ending}")
    with av.open(str(tmp_path / f"b.{ending}")) as result:
        begin = [chapter["start"] * chapter["time_base"] for chapter in result.chapters()]
    assert begin == [0, Fraction(16, 100)]


def test_gray_without_a_range_is_full_range(tmp_path):
    for codec, full in (("ffv1", True), ("libx264", False)):
        path = make_clip(tmp_path / f"{codec}.mkv", codec=codec, pix_fmt="gray", frames=2)
        assert describe(path).colour.full_range == full


def test_a_default_bit_rate_is_reported(tmp_path, upscale):
    path = make_clip(tmp_path / "a.mkv", frames=3)
    assert "mpeg4 encodes at its default of 200 kbit/s" in " ".join(
        upscale(path, tmp_path / "b.mkv", codec="mpeg4")
    )
    assert upscale(path, tmp_path / "c.mkv", codec="ffv1") == []


def test_what_a_codec_cannot_store_is_reported(tmp_path, upscale):
    path = make_clip(tmp_path / "a.mkv", codec="ffv1", pix_fmt="yuv444p12le", frames=3)
    notes = upscale(path, tmp_path / "b.mkv", codec="libsvtav1")
    assert notes == [
        "libsvtav1 takes 10 bits; the video has 12",
        "libsvtav1 takes yuv420p10le; the video is yuv444p12le",
    ]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("b.avi", {}, r"b.avi: the name must end in .mkv, .mp4, .m4v, .mov, .webm"),
        ("none/b.mkv", {}, r"none/b.mkv: the folder .*none does not exist"),
        ("a.mkv", {"overwrite": True}, r"a.mkv is an input of this command and is not replaced"),
        ("link.mkv", {"overwrite": True}, r"link.mkv is an input of this command \(.*a.mkv\)"),
        ("old.mkv", {}, r"old.mkv exists; --overwrite replaces it"),
        ("folder.mkv", {"overwrite": True}, r"folder.mkv is a folder"),
        ("b.mkv", {"codec": "h999"}, r"--codec h999: this build of FFmpeg has no such encoder"),
        ("b.mkv", {"codec": "aac"}, r"--codec aac encodes audio"),
        ("b.mkv", {"crf": 99.0}, r"--crf 99: libx264 takes 0 to 63"),
        ("b.mkv", {"codec": "ffv1", "crf": 9.0}, r"--crf has no effect with ffv1"),
        ("b.mkv", {"resume": True}, r"there is nothing to resume: .*b.mkv.segments does not exist"),
        ("b.mkv", {"start": Fraction(99)}, r"no frames between --from and --to"),
        ("b.mkv", {"start": Fraction(2), "end": Fraction(1)}, r"--to must be later than --from"),
        ("b.mkv", {"batch": 0}, r"--batch 0: expected a number of frames, at least 1"),
        (
            "b.webm",
            {},
            r"webm does not take stream 1 \(subtitle, srt\) of the input; matroska would",
        ),
        ("b.mp4", {"codec": "utvideo"}, r"utvideo cannot encode 192x128 in .* into mp4"),
    ],
)
def test_bad_input(tmp_path, upscale, target, options, message):
    make_clip(tmp_path / "a.mkv", subtitle=True, frames=3)
    (tmp_path / "link.mkv").symlink_to("a.mkv")
    (tmp_path / "old.mkv").write_bytes(b"old")
    (tmp_path / "folder.mkv").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(EspanError, match=message):
        upscale(tmp_path / "a.mkv", tmp_path / target, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "old.mkv").read_bytes() == b"old"


def test_inputs_that_are_no_video(tmp_path, upscale):
    with pytest.raises(EspanError, match=r"no such file: .*none.mkv"):
        upscale(tmp_path / "none.mkv", tmp_path / "b.mkv")
    (tmp_path / "text.mkv").write_text("text")
    with pytest.raises(EspanError, match=r"text.mkv: not a video file that FFmpeg can read \(Inv"):
        upscale(tmp_path / "text.mkv", tmp_path / "b.mkv")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(EspanError, match=r"sound.mp4 has no video stream"):
        upscale(tmp_path / "sound.mp4", tmp_path / "b.mkv")


def test_sizes_that_a_codec_does_not_take(tmp_path, make_network):
    """Three times an odd size is odd."""
    from espan.fused import FusedNetwork
    from espan.models import Architecture

    network = FusedNetwork(make_network(Architecture(8, (2,), scale=3)), device="cpu")
    path = make_clip(tmp_path / "a.mkv", width=33, height=35, codec="ffv1", frames=3)
    message = (
        r"libx264 cannot encode 99x105 in yuv420p .* \(width not divisible by 2.*take odd sizes"
    )
    with pytest.raises(EspanError, match=message):
        run.upscale_video(path, tmp_path / "b.mkv", network, run.Options())
    run.upscale_video(path, tmp_path / "b.mkv", network, run.Options(codec="libsvtav1"))
    assert (describe(tmp_path / "b.mkv").width, describe(tmp_path / "b.mkv").height) == (99, 105)


def test_file_names(tmp_path, upscale):
    """FFmpeg would take "a:" for a protocol, and "%d" for a number."""
    path = make_clip(tmp_path / "a.mkv", frames=3).rename(tmp_path / "a:%d é.mkv")
    upscale(path, tmp_path / "b:%d é.mkv")
    assert len(frame_times(tmp_path / "b:%d é.mkv")) == 3


def with_captions(path, target):
    """Add closed captions (A/53) to each frame of H.264 in MP4, as a unit of its own."""
    with av.open(str(path)) as source, av.open(str(target), "w") as result:
        video = source.streams.video[0]
        copy = result.add_stream_from_template(video, opaque=True)
        for i, packet in enumerate(p for p in source.demux(video) if p.size):
            pair = bytes([0xFC, 0x80 | (0x20 + i), 0x80 | (0x21 + i)])
            payload = b"\xb5\x00\x31GA94\x03" + bytes([0x41, 0xFF]) + pair + b"\xff"
            unit = b"\x06\x04" + bytes([len(payload)]) + payload + b"\x80"
            new = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
            new.pts, new.dts, new.duration = packet.pts, packet.dts, packet.duration
            new.time_base, new.is_keyframe, new.stream = packet.time_base, packet.is_keyframe, copy
            result.mux(new)
    return target


def captions(path):
    with av.open(str(path)) as container:
        return [
            [bytes(data) for data in frame.side_data if data.type.name == "A53_CC"]
            for frame in container.decode(video=0)
        ]


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_closed_captions(tmp_path, upscale, codec):
    plain = make_clip(tmp_path / "plain.mp4", frames=6, options={"bf": "0"})
    path = with_captions(plain, tmp_path / "a.mp4")
    before = captions(path)
    assert [len(each) for each in before] == [1] * 6
    assert len({each[0] for each in before}) == 6
    upscale(path, tmp_path / "b.mp4", codec=codec)
    assert captions(tmp_path / "b.mp4") == before
    difference = [
        (a.double() - b.double()).abs().mean()
        for a, b in zip(pixels(tmp_path / "b.mp4"), pixels_of_plain(tmp_path, upscale), strict=True)
    ]
    assert max(difference) < 3  # the pixels are those of the network, not those of `reformat`


def pixels_of_plain(tmp_path, upscale):
    upscale(tmp_path / "plain.mp4", tmp_path / "c.mp4", overwrite=True)
    return pixels(tmp_path / "c.mp4")


def test_other_video_and_data_streams(tmp_path, upscale):
    """The first video stream is upscaled; what a container does not take is reported."""
    parts = [make_clip(tmp_path / f"{i}.ts", codec="mpeg2video", frames=5 + i) for i in (0, 1)]
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as result:
        sources = [av.open(str(part)) for part in parts]
        copies = [
            result.add_stream_from_template(source.streams.video[0], opaque=True)
            for source in sources
        ]
        sensor = result.add_data_stream("klv")
        sensor.time_base = Fraction(1, 90000)
        found = [
            (packet, copy)
            for source, copy in zip(sources, copies, strict=True)
            for packet in source.demux(video=0)
            if packet.size
        ]
        for packet, copy in sorted(found, key=lambda pair: pair[0].dts):
            packet.stream = copy
            result.mux(packet)
        for i in range(3):
            packet = av.Packet(bytes(16) + b"\1\2")
            packet.pts = packet.dts = 9000 + 3600 * i
            packet.stream, packet.time_base = sensor, Fraction(1, 90000)
            result.mux(packet)
        for source in sources:
            source.close()
    with av.open(str(path)) as container:
        kinds = [stream.type for stream in container.streams]
    assert kinds == ["video", "video", "data"]
    notes = upscale(path, tmp_path / "b.mkv")
    assert notes == ["stream 2 (data) is not kept: matroska does not take it"]
    with av.open(str(tmp_path / "b.mkv")) as after, av.open(str(path)) as before:
        assert [(s.type, s.codec_context.width) for s in after.streams] == [
            ("video", 192),
            ("video", 48),
        ]
        other = [bytes(p) for p in before.demux(before.streams[1]) if p.size]
        assert [bytes(p) for p in after.demux(after.streams[1]) if p.size] == other
