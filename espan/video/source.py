"""What a video file holds: the stream to upscale, its size, times and colours."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from espan.errors import EspanError
from espan.video.colour import RGB, UNSPECIFIED, Colour, assumed_matrix
from espan.video.layout import Layout
from espan.video.pixel_formats import has_alpha, layout_of

_FULL_RANGE, _LIMITED_RANGE = 2, 1
_LISTED = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


@dataclass(frozen=True)
class Source:
    """The video stream that is upscaled.

    Attributes:
        path: of the file.
        index: of the stream in the file.
        start: the earliest time of any stream in seconds, or 0 if that is negative: what players
            show as 0.
        duration: of the video in seconds, if the file says it.
        end: of the video stream in seconds, if the file says it of this stream.
        frames: their number, roughly.
        layout: in which frames are read.
        alpha: whether the video has transparency, which is not read.
        aspect: width of a pixel divided by its height; None if unknown.
        display_matrix: rotates and mirrors the frames for display.
        side_data: of the first frame, by FFmpeg's names.
    """

    path: Path
    index: int
    codec: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    start: Fraction
    duration: Fraction | None
    end: Fraction | None
    frames: int | None
    layout: Layout
    alpha: bool
    colour: Colour
    interlaced: bool
    aspect: Fraction | None
    display_matrix: tuple[int, ...] | None
    side_data: dict[str, bytes]

    @property
    def step(self) -> int:
        """From one frame to the next, in units of `time_base`."""
        return max(1, round(1 / (self.rate * self.time_base)))


def open_input(path: Path) -> InputContainer:
    if not path.exists():
        raise EspanError(f"no such file: {path}")
    if not path.is_file():
        raise EspanError(f"{path} is not a file")
    try:
        # "file:", because FFmpeg takes the part of a name before a colon for a protocol.
        return av.open(f"file:{path}", metadata_errors="surrogateescape")
    except (av.FFmpegError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EspanError(f"{path}: not a video file that FFmpeg can read ({reason})") from error


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let errors such as a full disk name the file that is written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def main_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first video stream that is not a picture attached to the file."""
    streams = [s for s in container.streams.video if not s.disposition & _LISTED]
    if not streams:
        raise EspanError(f"{path} has no video stream")
    if streams[0].codec_context is None:
        raise EspanError(f"{path}: this build of FFmpeg has no decoder for the video stream")
    return streams[0]


def describe(path: Path) -> Source:
    """Read the headers and the first frame of a file."""
    with open_input(path) as container:
        stream = main_stream(container, path)
        # Read before the stream is decoded, which may change the frame size.
        chroma = _chroma_location(stream)
        frame = None
        try:
            for packet in container.demux(stream):
                try:
                    frame = next(iter(packet.decode()), None)
                except av.FFmpegError:
                    continue  # damaged; `read_frames` reports it
                if frame is not None:
                    break
        except av.FFmpegError:
            pass
        if frame is None or stream.time_base is None:
            raise EspanError(f"{path}: no frame of the video stream can be decoded")
        layout = layout_of(frame.format.name)
        matrix = frame.colorspace
        if layout.rgb:
            matrix = RGB
        elif matrix in (RGB, UNSPECIFIED, 3):
            matrix = assumed_matrix(frame.width, frame.height)
        full = frame.color_range == _FULL_RANGE
        if frame.color_range not in (_FULL_RANGE, _LIMITED_RANGE):
            # FFmpeg takes gray for full range; the standards of H.264 and HEVC say limited.
            gray = layout.planes == 1 and stream.codec_context.name not in ("h264", "hevc")
            full = layout.rgb or gray or frame.format.name.startswith("yuvj")
        side_data = _side_data(frame)
        rotation = side_data.get("DISPLAYMATRIX")
        starts = [
            s.start_time * s.time_base
            for s in container.streams
            if s.start_time is not None and s.time_base
        ]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        own = _duration(stream)
        whole = None if container.duration is None else Fraction(container.duration, av.time_base)
        if own is None and [s.type for s in container.streams].count("audio") == 0:
            own = whole
        duration = whole if own is None else own
        return Source(
            path=path,
            index=stream.index,
            codec=stream.codec_context.name,
            width=frame.width,
            height=frame.height,
            time_base=stream.time_base,
            rate=rate,
            start=max(Fraction(0), min(starts, default=Fraction(0))),
            duration=duration,
            end=None if own is None else own + (stream.start_time or 0) * stream.time_base,
            frames=stream.frames or (None if duration is None else round(duration * rate)),
            layout=layout,
            alpha=has_alpha(frame.format.name)
            # VP8 and VP9 have it in packets of their own, which FFmpeg's decoders ignore.
            or "1" in (stream.metadata.get("alpha_mode"), stream.metadata.get("ALPHA_MODE")),
            colour=Colour(matrix, full, frame.color_primaries, frame.color_trc, chroma),
            interlaced=frame.interlaced_frame,
            aspect=stream.sample_aspect_ratio or None,
            display_matrix=struct.unpack("9i", rotation) if rotation else None,
            side_data=side_data,
        )


def names_of_side_data(frame: Any) -> list[str]:
    """FFmpeg's names of what accompanies a frame.

    Unlike its stub, PyAV's `side_data` iterates over the data, not over their types.
    """
    return [data.type.name for data in frame.side_data]


def _side_data(frame: Any) -> dict[str, bytes]:
    return {data.type.name: bytes(data) for data in frame.side_data}


def _duration(stream: VideoStream) -> Fraction | None:
    if stream.duration is not None and stream.time_base is not None:
        return stream.duration * stream.time_base
    try:  # Matroska has a tag for each stream
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds.rstrip("\0"))
    except (KeyError, ValueError):
        return None


def _chroma_location(stream: VideoStream) -> str:
    """Where chroma lies: "left", as in most video, if the stream does not say it.

    PyAV has no attribute for it, but it is in the header of a Matroska file with this stream: the
    elements ChromaSitingHorz and ChromaSitingVert, which are 1 (left, top) or 2 (half).
    """
    header = io.BytesIO()
    try:
        with av.open(header, "w", format="matroska") as container:
            container.add_stream_from_template(stream, opaque=True)
            container.start_encoding()
    except (av.FFmpegError, ValueError):
        return "left"  # Matroska does not hold this codec
    horizontal = header.getvalue().partition(b"\x55\xb7\x81")[2][:1]
    vertical = header.getvalue().partition(b"\x55\xb8\x81")[2][:1]
    known = {(b"\1", b"\2"): "left", (b"\2", b"\2"): "center", (b"\1", b"\1"): "topleft"}
    known[b"\2", b"\1"] = "top"
    return known.get((horizontal, vertical), "left")
