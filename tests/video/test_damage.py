"""Damaged files: what cannot be decoded is reported with its time, and all else keeps its time."""

import contextlib
from fractions import Fraction

import numpy as np
import pytest

pytest.importorskip("av", reason="PyAV is not installed: the extra `video`")

import av

from espan.video.decode import read_frames
from espan.video.source import describe
from tests.video.clips import frame_times, make_clip, packets


def damage(path, first, last):
    """Overwrite the packets from one to another, in the order of decoding."""
    with av.open(str(path)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(0)
    for position, size in places[first:last]:
        # Not the length of the first unit of H.264 in MP4.
        data[position + 4 : position + size] = noise.bytes(size - 4)
    path.write_bytes(data)


def decoded(path):
    """All frames, whole or damaged."""
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            with contextlib.suppress(av.FFmpegError):
                yield from packet.decode()


def test_a_damaged_stretch(tmp_path, upscale):
    path = make_clip(
        tmp_path / "a.mp4", frames=50, audio=("aac", 48000, 2.0), options={"g": "10", "bf": "0"}
    )
    times = frame_times(path)
    damage(path, 20, 24)
    notes = upscale(path, tmp_path / "b.mp4")
    found = frame_times(tmp_path / "b.mp4")
    missing = sorted(set(times) - set(found))
    # The next keyframe is frame 30; those after the damage may be concealed.
    assert times[20:24] == missing[:4]
    assert set(missing) <= set(times[20:30])
    assert set(found) == set(times) - set(missing)
    assert packets(tmp_path / "b.mp4", "audio") == packets(path, "audio")
    assert any(note.startswith("from 0:00:00.800 to 0:00:0") for note in notes)
    assert all(note.endswith("the video is damaged; this part is left out") for note in notes)


@pytest.mark.parametrize(
    ("codec", "ending", "options"),
    [
        ("libx264", "mp4", {"g": "10"}),
        ("libx265", "mkv", {}),
        ("mpeg2video", "ts", {"g": "10"}),
        ("libvpx-vp9", "webm", {"g": "10"}),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_any_damage(tmp_path, codec, ending, options, seed):
    """Frames that are read have times that the file has, and whatever is missing is reported."""
    path = make_clip(tmp_path / f"a.{ending}", frames=60, width=64, codec=codec, options=options)
    times = frame_times(path)
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    noise = np.random.default_rng(seed)
    start = int(noise.integers(places[15], places[35]))
    data[start : start + 600] = noise.bytes(600)
    path.write_bytes(data)
    flagged = {frame.pts * frame.time_base for frame in decoded(path) if frame.is_corrupt}
    assert flagged or codec != "mpeg2video" or seed == 0  # which overwrites whole packets
    source, notes = describe(path), []
    read = [f.pts * source.time_base for f in read_frames(source, report=notes.append)]
    assert len(read) > 10
    assert read == sorted(set(read))
    assert not flagged & set(read)
    if codec != "libvpx-vp9":
        assert set(read) <= set(times)
    if ending != "webm" and len(read) < 60:
        assert notes


def test_a_file_that_ends_early(tmp_path, upscale):
    path = make_clip(tmp_path / "a.mkv", frames=50, options={"g": "10"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    notes = upscale(path, tmp_path / "b.mkv")
    assert frame_times(tmp_path / "b.mkv") == frame_times(path)
    assert len(notes) == 1
    assert notes[0].startswith("the video ends at 0:00:0")
    assert "0:00:02.000" in notes[0]


def test_nothing_can_be_decoded(tmp_path, upscale):
    path = make_clip(tmp_path / "a.mp4", frames=5)
    damage(path, 0, 5)
    with pytest.raises(ValueError, match=r"a.mp4: no frame of the video stream can be decoded"):
        upscale(path, tmp_path / "b.mp4")


def test_frames_of_another_size_are_scaled(tmp_path, upscale):
    """A stream whose size changes, as in television."""
    parts = [
        make_clip(tmp_path / f"{width}.ts", codec="mpeg2video", width=width, height=32, frames=6)
        for width in (48, 64)
    ]
    path = tmp_path / "a.ts"
    with av.open(str(path), "w") as result:
        stream = None
        for i, part in enumerate(parts):
            with av.open(str(part)) as container:
                video = container.streams.video[0]
                stream = stream or result.add_stream_from_template(video, opaque=True)
                for packet in container.demux(video):
                    if packet.size:
                        packet.pts += i * 6 * 3600
                        packet.dts += i * 6 * 3600
                        packet.stream = stream
                        result.mux(packet)
    notes = upscale(path, tmp_path / "b.mkv")
    # The decoder loses the frame that it had kept back at the change.
    assert notes[0].startswith("from 0:00:00.200 to 0:00:00.240, the video is damaged")
    assert notes[1:] == ["at 0:00:00.240, the frames become 64x32; they are scaled to 48x32"]
    assert len(frame_times(tmp_path / "b.mkv")) == 11


def test_a_part_from_any_frame_on(tmp_path):
    """Reading from a time gives the frames that reading from the start gives."""
    path = make_clip(tmp_path / "a.mp4", frames=40, options={"g": "12"})
    source = describe(path)
    times = [frame.pts for frame in read_frames(source)]
    for i in (0, 1, 11, 12, 25, 39):
        assert [f.pts for f in read_frames(source, first=times[i])] == times[i:]
        assert [f.pts for f in read_frames(source, after=times[i])] == times[i + 1 :]
        assert [f.pts for f in read_frames(source, end=times[i])] == times[:i]
    assert source.rate == Fraction(25)
