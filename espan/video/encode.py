"""Encoding frames: the settings of the encoder, and one file of a segment."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
from av import VideoFrame
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from torch import Tensor

from espan.errors import EspanError
from espan.video import hdr
from espan.video.colour import BT709, RGB, Colour
from espan.video.layout import Layout
from espan.video.pixel_formats import closest
from espan.video.planes import write_planes
from espan.video.source import Source, naming

# Visually close to lossless at a moderate size, by the scale of each encoder.  Those of NVENC have
# not been run; without one, it makes 2 Mbit/s of any size.
_CRF = {"libx264": 18, "libx265": 20, "libsvtav1": 28, "libvpx-vp9": 24}
_CRF |= {"h264_nvenc": 20, "hevc_nvenc": 22, "av1_nvenc": 28}
# The names of the options that mean "constant quality".
_QUALITY_OPTIONS = ("crf", "cq")

# A segment's first packet is decoded so many units before it is shown: encoders reorder at most 16
# frames.
_EARLY = 16

# The encoders print to the terminal by themselves.
os.environ.setdefault("SVT_LOG", "1")


@dataclass(frozen=True)
class Encoding:
    """The settings of the encoder.

    Attributes:
        codec: FFmpeg's name of the encoder.
        format: the pixel format that it takes.
        layout: of the frames that `SegmentWriter.write` takes.
        container: FFmpeg's name of the format of the file.
        options: of the encoder.
        display_matrix, aspect: as in `Source`.
    """

    codec: str
    format: str
    layout: Layout
    colour: Colour
    container: str
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None
    display_matrix: tuple[int, ...] | None
    options: dict[str, str]


def default_codec(container: str, source: Source) -> str:
    """H.264 for 8 bits, HEVC for more; in WebM, which takes neither, VP9 and AV1."""
    if container == "webm":
        return "libvpx-vp9" if source.layout.bits == 8 else "libsvtav1"
    return "libx264" if source.layout.bits == 8 else "libx265"


def plan_encoding(
    source: Source, scale: int, container: str, codec: str | None, crf: float | None
) -> tuple[Encoding, list[str]]:
    """The settings for a source that is enlarged `scale` times, and what is not kept.

    Raises EspanError for an unknown codec, or one without --crf if that is given.
    """
    name = codec or default_codec(container, source)
    try:
        found = av.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        raise EspanError(
            f"--codec {name}: this build of FFmpeg has no such encoder; e.g. libx264, libx265, "
            "libsvtav1, libvpx-vp9 or ffv1"
        ) from None
    if found.type != "video":
        raise EspanError(f"--codec {name} encodes {found.type}; e.g. libx264 or libx265")
    name = found.name
    width, height = scale * source.width, scale * source.height
    if name == "libx265" and width < 64:
        # x265 4.1 in PyAV's wheels writes beyond its memory at a width of 48.
        raise EspanError(f"libx265 takes a width of 64 or more, not {width}; try another --codec")
    notes = []
    formats = [form.name for form in found.video_formats or ()] or [source.layout.name]
    chosen = closest(source.layout, formats)
    if chosen is None:
        raise EspanError(f"--codec {name} takes no frames that espan can make: {formats}")
    form, layout = chosen
    if layout.bits < source.layout.bits:
        notes.append(f"{name} takes {layout.bits} bits; the video has {source.layout.bits}")
    if source.layout.planes == 3 and (
        (layout.half_width, layout.half_height, layout.rgb)
        > (source.layout.half_width, source.layout.half_height, source.layout.rgb)
    ):
        notes.append(f"{name} takes {layout.name}; the video is {source.layout.name}")
    if source.alpha:
        notes.append("the video's transparency is not kept")
    colour = source.colour
    if colour.matrix == RGB and not layout.rgb:
        colour = Colour(BT709, False, colour.primaries, colour.transfer)
    if "av1" in name and colour.chroma not in ("left", "topleft"):
        colour = replace(colour, chroma="left")  # AV1 has no others
    context = av.CodecContext.create(name, "w")
    quality = _quality(context, name, crf)
    if not quality and context.bit_rate and not (found.lossless or found.intra_only):
        notes.append(
            f"{name} encodes at its default of {context.bit_rate / 1000:g} kbit/s, whatever the "
            "size; set --crf if it has one, or choose another --codec"
        )
    options = quality | {"chroma_sample_location": colour.chroma}
    if name == "libx265":
        options |= {"x265-params": "log-level=error", "a53cc": "1"}
    metadata = hdr.encoder_options(name, source.side_data)
    if metadata is None:
        notes.append(f"the HDR metadata (mastering display, light level) is not kept by {name}")
    for option, value in (metadata or {}).items():
        options[option] = f"{options[option]}:{value}" if option in options else value
    matrix = source.display_matrix
    if matrix is not None:  # all but the translation is free of units
        matrix = (*matrix[:6], scale * matrix[6], scale * matrix[7], *matrix[8:])
    encoding = Encoding(
        codec=name,
        format=form,
        layout=layout,
        colour=colour,
        container=container,
        width=width,
        height=height,
        time_base=source.time_base,
        rate=source.rate,
        aspect=source.aspect,
        display_matrix=matrix,
        options=options,
    )
    return encoding, notes


def _quality(context: av.CodecContext, codec: str, crf: float | None) -> dict[str, str]:
    known = {option.name: option for option in context.supported_options.private}
    name = next((each for each in _QUALITY_OPTIONS if each in known), None)
    if crf is None:
        return {name: str(_CRF[codec])} if name is not None and codec in _CRF else {}
    if name is None:
        raise EspanError(f"--crf has no effect with {codec}")
    low, high = known[name].min, min(known[name].max, 63)
    if not max(0, low) <= crf <= high:
        raise EspanError(f"--crf {crf:g}: {codec} takes {max(0, low):g} to {high:g}")
    return {name: f"{crf:g}"}


def add_video(container: OutputContainer, encoding: Encoding) -> VideoStream:
    """An encoder's stream in a container."""
    stream = container.add_stream(
        encoding.codec,
        rate=encoding.rate,
        options=encoding.options,
        width=encoding.width,
        height=encoding.height,
        pix_fmt=encoding.format,
        time_base=encoding.time_base,
    )
    assert isinstance(stream, VideoStream)
    context, colour = stream.codec_context, encoding.colour
    context.colorspace = colour.matrix
    context.color_range = 2 if colour.full_range else 1
    context.color_primaries = colour.primaries
    context.color_trc = colour.transfer
    if encoding.aspect is not None:
        context.sample_aspect_ratio = encoding.aspect
    stream.set_display_matrix(encoding.display_matrix)
    return stream


class SegmentWriter:
    """One file of encoded frames, which is complete after `close`.

    Attributes:
        times: of the packets, in the order of decoding.
    """

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self.encoding = encoding
        self.times: list[int] = []
        self._path = path
        self._last: int | None = None
        try:
            self._container = av.open(f"file:{path}", "w", format=encoding.container)
            self._stream = add_video(self._container, encoding)
            self._container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            raise self._error(error) from error

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._container.close()

    def write(
        self, planes: Sequence[Tensor], pts: int, duration: int, like: VideoFrame | None = None
    ) -> None:
        """Encode a frame.

        Args:
            planes: CPU tensors, in `encoding.layout`.
            pts, duration: in units of `encoding.time_base`.
            like: a frame whose closed captions are kept.
        """
        encoding = self.encoding
        size = (encoding.width, encoding.height)
        if like is None:
            frame = VideoFrame(*size, encoding.layout.name)
        else:  # `reformat` copies what belongs to a frame; its pixels are replaced
            frame = like.reformat(*size, encoding.layout.name, interpolation="POINT")
        write_planes(frame, encoding.layout, planes)
        frame.pict_type = 0  # the encoder chooses
        frame.pts, frame.duration, frame.time_base = pts, duration, encoding.time_base
        frame.colorspace = encoding.colour.matrix
        frame.color_range = 2 if encoding.colour.full_range else 1
        frame.color_primaries = encoding.colour.primaries
        frame.color_trc = encoding.colour.transfer
        self._mux(frame)

    def close(self) -> None:
        """Encode what the encoder has kept back, and finish the file."""
        self._mux(None)
        with naming(self._path):
            self._container.close()

    def _mux(self, frame: VideoFrame | None) -> None:
        try:
            packets = self._stream.encode(frame)
        except (av.FFmpegError, ValueError) as error:
            raise self._error(error) from error
        for packet in packets:
            assert packet.pts is not None
            self.times.append(packet.pts)
            packet.dts = self._decoding_time(packet)
            with naming(self._path):
                self._container.mux(packet)

    def _decoding_time(self, packet: Packet) -> int:
        """That of the encoder, unless it is senseless, as of the first packets of x265.

        `join` makes better ones, from all packets.
        """
        assert packet.pts is not None
        last = self._last
        if last is None:
            self._last = packet.pts - _EARLY
        elif packet.dts is None or not last < packet.dts <= packet.pts:
            self._last = min(packet.pts, last + 1)
        else:
            self._last = packet.dts
        return self._last

    def _error(self, error: Exception) -> EspanError:
        log = getattr(error, "log", None)
        reason = getattr(error, "strerror", None) or str(error)
        if log:  # level, name, and what the encoder said before it failed
            reason = f"{log[2].strip()}; {reason}"
        encoding = self.encoding
        problem = (
            f"{encoding.codec} cannot encode {encoding.width}x{encoding.height} in "
            f"{encoding.format} into {encoding.container} ({reason})"
        )
        odd = encoding.width % 2 or encoding.height % 2
        if odd and (encoding.layout.half_width or encoding.layout.half_height):
            return EspanError(f"{problem}; --codec libsvtav1 and libvpx-vp9 take odd sizes")
        return EspanError(f"{problem}; try another --codec")
