"""Interrupted runs: what is on the disk, and that --resume continues with the same result."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import pytest

pytest.importorskip("av", reason="PyAV is not installed: the extra `video`")

from espan.errors import EspanError
from espan.video import encode, run
from espan.video.segments import SegmentFolder
from tests.video.clips import frame_times, make_clip, packets


@pytest.fixture(autouse=True)
def _repeatable_x264(monkeypatch):
    """x264 does not always write the same bits for the same frames, unless it is lossless.

    Seen with x264 core 165 in PyAV 18: 7 of 300 files were different, in spite of asm=0; none of
    300 that were lossless.
    """
    quality = encode._quality

    def repeatable(context, codec, crf):
        return quality(context, codec, 0.0 if codec == "libx264" else crf)

    monkeypatch.setattr(encode, "_quality", repeatable)


@pytest.fixture
def segments_of_5(monkeypatch):
    monkeypatch.setattr(run, "FRAMES", 5)


class InterruptedAfter:
    """A progress callback that raises after so many frames."""

    def __init__(self, frames, error):
        self.frames, self.error = frames, error

    def __call__(self, state):
        if state.done == self.frames:
            raise self.error


@pytest.fixture
def interrupt(network):
    """A function that runs until an error after so many frames."""

    def interrupt(path, target, frames, error, **options):
        with pytest.raises(type(error)):
            run.upscale_video(
                path, target, network, run.Options(**options),
                progress=InterruptedAfter(frames, error),
            )  # fmt: skip

    return interrupt


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_resume_gives_the_same_result(tmp_path, upscale, interrupt, segments_of_5, ending, codec):
    """Packet by packet, with a variable frame rate and B-frames."""
    times = [90 * (i * 40 + i * i % 7 * 5) for i in range(23)]
    path = make_clip(
        tmp_path / "a.mp4", frames=23, times=times, time_base=Fraction(1, 90000),
        audio=("aac", 48000, 0.9), options={"g": "7"},
    )  # fmt: skip
    whole, target = tmp_path / f"whole.{ending}", tmp_path / f"b.{ending}"
    upscale(path, whole, codec=codec)
    interrupt(path, target, 12, RuntimeError("a power cut"), codec=codec)
    assert not target.exists()
    folder = tmp_path / f"b.{ending}.segments"
    names = sorted(p.name for p in folder.iterdir())
    done = [f"0000{i}.{kind}" for i in (0, 1) for kind in ("json", ending)]
    assert names == sorted([*done, "job.json"])
    assert [len(frame_times(folder / name)) for name in names if name.endswith(ending)] == [5, 5]
    upscale(path, target, codec=codec, resume=True)
    assert not folder.exists()
    for kind in ("video", "audio"):
        assert packets(target, kind) == packets(whole, kind)
    assert frame_times(target) == frame_times(whole)
    assert len(frame_times(target)) == 23


def test_ctrl_c_keeps_every_encoded_frame(tmp_path, upscale, network, segments_of_5, monkeypatch):
    """Those that were enlarged become a segment, however few."""
    path = make_clip(tmp_path / "a.mkv", frames=14)
    calls, encoded = [], threading.Event()

    def progress(state):
        if state.done == 8:
            encoded.set()

    class Interrupted(run.Upscaler):
        def __call__(self, image):
            calls.extend([1] * isinstance(image, list))
            if len(calls) == 9:
                assert encoded.wait(60)
                raise KeyboardInterrupt
            return super().__call__(image)

    monkeypatch.setattr(run, "Upscaler", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.upscale_video(path, tmp_path / "b.mkv", network, run.Options(), progress=progress)
    folder = tmp_path / "b.mkv.segments"
    assert len(frame_times(folder / "00000.mkv")) == 5
    assert len(frame_times(folder / "00001.mkv")) == 3
    upscale(path, tmp_path / "b.mkv", resume=True)
    assert frame_times(tmp_path / "b.mkv") == frame_times(path)


def test_resume_without_an_index(tmp_path, upscale, interrupt, segments_of_5):
    """A stream that cannot be searched well is read from its start."""
    path = make_clip(tmp_path / "a.ts", codec="mpeg2video", frames=14)
    interrupt(path, tmp_path / "b.mp4", 11, RuntimeError())
    upscale(path, tmp_path / "b.mp4", resume=True)
    earliest = frame_times(path)[0]
    assert frame_times(tmp_path / "b.mp4") == [t - earliest for t in frame_times(path)]


def test_an_interruption_before_the_first_segment_leaves_nothing(tmp_path, interrupt):
    path = make_clip(tmp_path / "a.mkv")
    interrupt(path, tmp_path / "b.mkv", 3, RuntimeError())
    assert [p.name for p in tmp_path.iterdir()] == ["a.mkv"]


def test_a_folder_of_another_run(tmp_path, upscale, interrupt, segments_of_5):
    path = make_clip(tmp_path / "a.mkv", frames=14)
    other = make_clip(tmp_path / "other.mkv", frames=13)
    target = tmp_path / "b.mkv"
    interrupt(path, target, 7, RuntimeError(), crf=20.0)
    with pytest.raises(EspanError, match=r"b.mkv.segments holds .*; --resume continues it; to beg"):
        upscale(path, target, crf=20.0)
    with pytest.raises(EspanError, match=r"not the run .*: --crf is 21.0 and was 20.0; --from is"):
        upscale(path, target, crf=21.0, start=Fraction(1, 4), resume=True)
    with pytest.raises(EspanError, match=r"the input's content is '\w+' and was '\w+'"):
        upscale(other, target, crf=20.0, resume=True)
    with pytest.raises(EspanError, match=r"the codec is 'ffv1' and was 'libx264'"):
        upscale(path, target, codec="ffv1", resume=True)
    (tmp_path / "b.mkv.segments" / "00000.mkv").write_bytes(b"")
    with pytest.raises(EspanError, match=r"00000.mkv is missing or was changed; delete .*segments"):
        upscale(path, target, crf=20.0, resume=True)
    (tmp_path / "b.mkv.segments" / "job.json").write_text("{")
    with pytest.raises(EspanError, match=r"job.json cannot be read"):
        upscale(path, target, crf=20.0, resume=True)
    assert not target.exists()


def test_the_batch_may_change(tmp_path, upscale, interrupt, segments_of_5):
    path = make_clip(tmp_path / "a.mkv", frames=14)
    interrupt(path, tmp_path / "b.mkv", 7, RuntimeError())
    upscale(path, tmp_path / "b.mkv", batch=3, resume=True)
    upscale(path, tmp_path / "c.mkv")
    assert packets(tmp_path / "b.mkv", "video") == packets(tmp_path / "c.mkv", "video")


def test_foreign_files_in_the_folder_are_kept(tmp_path, upscale, interrupt, segments_of_5):
    path = make_clip(tmp_path / "a.mkv", frames=14)
    interrupt(path, tmp_path / "b.mkv", 7, RuntimeError())
    folder = tmp_path / "b.mkv.segments"
    (folder / "notes.txt").write_text("mine")
    (folder / ".0123456789ab.part").write_text("of a run that was killed")
    upscale(path, tmp_path / "b.mkv", resume=True)
    assert [p.name for p in folder.iterdir()] == ["notes.txt"]


def test_an_existing_result_is_replaced_at_the_end(tmp_path, upscale, interrupt, segments_of_5):
    path = make_clip(tmp_path / "a.mkv", frames=14)
    target = tmp_path / "b.mkv"
    target.write_bytes(b"old")
    interrupt(path, target, 7, RuntimeError(), overwrite=True)
    assert target.read_bytes() == b"old"
    upscale(path, target, overwrite=True, resume=True)
    assert frame_times(target) == frame_times(path)


def test_a_result_written_in_the_meantime_is_kept(tmp_path, network):
    path, target = make_clip(tmp_path / "a.mkv"), tmp_path / "b.mkv"

    def write(state):
        target.write_bytes(b"another process")

    with pytest.raises(EspanError, match=r"b.mkv was written by another process in the meantime"):
        run.upscale_video(path, target, network, run.Options(), progress=write)
    assert target.read_bytes() == b"another process"
    assert (tmp_path / "b.mkv.segments" / "00000.mkv").exists()


def test_segments_are_complete_or_absent(tmp_path):
    folder = SegmentFolder(tmp_path / "b.mkv")
    folder.create({"a": 1})
    with folder.scratch() as part:
        part.write_bytes(b"frames")
        folder.add(part, [0, 2, 1], 1, ["a note"])
    (folder.path / "00001.mkv").write_bytes(b"without its index")
    again = SegmentFolder(tmp_path / "b.mkv")
    again.resume({"a": 1})
    assert again.segments == folder.segments
    assert json.loads((folder.path / "00000.json").read_text())["times"] == [0, 2, 1]


@pytest.mark.slow
def test_a_process_that_is_stopped(tmp_path):
    """By Ctrl-C, then by kill; the command says how to continue, and continues."""
    path = make_clip(tmp_path / "a.mkv", frames=40, width=64, height=48)
    target, folder = tmp_path / "b.mkv", tmp_path / "b.mkv.segments"
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from espan.video import run; run.FRAMES = 4\n"
        "from espan.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "video", str(path), str(target), "--device", "cpu"]
    environment = {**os.environ, "COLUMNS": "200"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for how, options, segments in ((signal.SIGINT, [], 2), (signal.SIGKILL, ["--resume"], 4)):
        process = subprocess.Popen([*command, *options], env=environment, **pipes)
        deadline = time.monotonic() + 60
        while not (folder / f"0000{segments - 1}.json").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert not target.exists()
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert errors.strip() == (
                f"espan: the segments that are finished are in {folder}, and --resume continues\n"
                "espan: interrupted"
            )
        for index in folder.glob("0*.json"):
            assert frame_times(index.with_suffix(".mkv"))
    again = subprocess.run([*command, "--resume"], env=environment, timeout=120, **pipes)
    assert (again.returncode, again.stderr) == (0, "")
    assert "  256x192  40 frames in " in again.stdout
    assert frame_times(target) == frame_times(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mkv", "b.mkv"]
