"""Joining segments and all other streams of the input into one file, without encoding."""

from __future__ import annotations

import contextlib
import heapq
import io
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Discard, Disposition, Stream
from av.video.stream import VideoStream

from espan.errors import EspanError
from espan.video.decode import MOST_ERRORS, RESTART
from espan.video.encode import Encoding
from espan.video.segments import Segment
from espan.video.source import Source, naming, open_input
from espan.video.times import decoding_times

# Muxers write these; of another file, or of the smaller video, they would be wrong.
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder"}
_OF_THE_VIDEO = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS", "ENCODER", "ALPHA_MODE")
_PICTURES = {"mjpeg": "image/jpeg", "png": "image/png", "webp": "image/webp", "bmp": "image/bmp"}


@dataclass(frozen=True)
class Cut:
    """The part of the input that is kept, in seconds of its own time.

    Attributes:
        begin: becomes 0 in the result.
        first: packets of other streams before this time are left out; None: none are.
        end: so are packets from this time on.
    """

    begin: Fraction
    first: Fraction | None = None
    end: Fraction | None = None


def join(
    target: Path,
    source: Source,
    encoding: Encoding,
    segments: Sequence[Segment],
    cut: Cut,
    *,
    report: Callable[[str], None] = lambda message: None,
    header_only: bool = False,
) -> None:
    """Write the result.

    Every stream of the input but the enlarged one is copied, packet by packet, with the chapters,
    the metadata, and each stream's language, title and disposition.

    Args:
        target: a file, which is overwritten.
        source, encoding: of the segments.
        segments: in order, at least one.
        cut: the part of the input that they are.
        report: called with what cannot be kept or was corrected.
        header_only: stop after the header, to find out whether the container takes the streams.

    Raises:
        EspanError: the container does not take one of the streams.
        OSError: the file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        original = stack.enter_context(open_input(source.path))
        part = stack.enter_context(av.open(f"file:{segments[0].path}"))
        for stream in original.streams:
            if not _is_chapter_track(stream) and stream.index != source.index:
                _check(stream, encoding.container, report)
        with naming(target):
            result = av.open(
                f"file:{target}",
                "w",
                format=encoding.container,
                container_options=_options(original, encoding),
                metadata_errors="surrogateescape",
            )
            stack.callback(result.close)
            video, others = _add_streams(result, original, part, source, encoding)
            kept = {k: v for k, v in original.metadata.items() if k not in _OF_THE_FILE}
            result.metadata.update(kept)
            result.set_chapters(_chapters(original, cut))
            try:
                result.start_encoding()
            except (av.FFmpegError, ValueError) as error:
                if isinstance(error, OSError):
                    raise
                raise EspanError(
                    f"{target}: {encoding.container} does not take the streams of {source.path} "
                    f"({error}); .mkv takes most"
                ) from error
            if not header_only:
                pictures = _packets(video, segments, encoding, cut)
                _write(result, pictures, _copied(original, source, others, cut, report))
            result.close()


def _options(original: InputContainer, encoding: Encoding) -> dict[str, str]:
    if encoding.container not in ("mp4", "mov"):
        return {}
    # The beginning of each stream is stored in this unit, in milliseconds by default, which is too
    # coarse for audio.
    units = [s.time_base.denominator for s in original.streams if s.time_base is not None]
    unit = math.lcm(encoding.time_base.denominator, *units)
    return {"movie_timescale": str(unit)} if unit <= 100_000_000 else {}


def _is_chapter_track(stream: Stream) -> bool:
    """QuickTime's, whose chapters are copied as chapters."""
    return stream.type == "data" and stream.discard == Discard.all


def _name(stream: Stream) -> str:
    codec = f", {stream.codec_context.codec.name}" if stream.codec_context else ""
    return f"stream {stream.index} ({stream.type}{codec})"


def _check(stream: Stream, container: str, report: Callable[[str], None]) -> None:
    """Raise EspanError if the container does not take a stream; data streams are only reported."""
    if _takes(container, stream):
        return
    if stream.type in ("data", "unknown"):
        report(f"{_name(stream)} is not kept: {container} does not take it")
        return
    others = [each for each in ("matroska", "mp4", "mov", "webm") if _takes(each, stream)]
    raise EspanError(
        f"{container} does not take {_name(stream)} of the input; "
        + (
            f"{' or '.join(others)} would take it"
            if others
            else "no container does: remove it first"
        )
    )


def _takes(container: str, stream: Stream) -> bool:
    """Whether a file with this stream alone can be begun."""
    if stream.type == "attachment" or stream.disposition & Disposition.attached_pic:
        return container in ("matroska", "mp4", "mov") and (
            container == "matroska" or stream.type == "video"
        )
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _add_streams(
    result: OutputContainer,
    original: InputContainer,
    part: InputContainer,
    source: Source,
    encoding: Encoding,
) -> tuple[VideoStream, dict[int, Stream]]:
    """The stream of the enlarged video, and the copies of others by their index in the input.

    They are in the order of the input.  Attachments have no packets, so they are not among them.
    """
    video: VideoStream | None = None
    others: dict[int, Stream] = {}
    for stream in original.streams:
        picture = bool(stream.disposition & Disposition.attached_pic)
        if stream.index == source.index:
            video = result.add_stream_from_template(part.streams.video[0], opaque=True)
            video.time_base = encoding.time_base
            video.codec_context.framerate = encoding.rate
            if video.codec_context.name == "hevc" and encoding.container in ("mp4", "mov"):
                video.codec_context.codec_tag = "hvc1"  # Apple's players know no other
            video.metadata.update(
                {
                    k: v
                    for k, v in stream.metadata.items()
                    if not k.upper().startswith(_OF_THE_VIDEO)
                }
            )
            video.disposition = stream.disposition
        elif _is_chapter_track(stream) or not _takes(encoding.container, stream):
            continue
        elif isinstance(stream, AttachmentStream):
            _attach(result, stream, stream.data, stream.mimetype or "application/octet-stream")
        elif picture and encoding.container == "matroska":
            codec = stream.codec_context.name
            mimetype = _PICTURES.get(codec, f"image/{codec}")
            _attach(result, stream, _picture(source.path, stream.index), mimetype)
        else:
            copy = result.add_stream_from_template(stream, opaque=True)
            copy.metadata.update(stream.metadata)
            copy.disposition = stream.disposition
            others[stream.index] = copy
    assert video is not None
    return video, others


def _attach(result: OutputContainer, stream: Stream, data: bytes, mimetype: str) -> None:
    ending = mimetype.rpartition("/")[2]
    name = stream.metadata.get("filename", f"cover.{ending}".replace("jpeg", "jpg"))
    attached = result.add_attachment(name, mimetype, data)
    attached.metadata.update(stream.metadata | {"filename": name, "mimetype": mimetype})


def _picture(path: Path, index: int) -> bytes:
    """A picture that is attached to a file, of which it is the first packet of a stream."""
    with open_input(path) as container:
        return bytes(next(container.demux(container.streams[index])))


def _chapters(original: InputContainer, cut: Cut) -> list:
    chapters = []
    for chapter in original.chapters():
        unit = chapter["time_base"] or Fraction(1)
        start, end = (chapter[key] * unit for key in ("start", "end"))
        start = max(start, cut.begin)
        if cut.end is not None:
            end = min(end, cut.end)
        if start < end:
            times = {"start": round((start - cut.begin) / unit)}
            times["end"] = round((end - cut.begin) / unit)
            chapters.append({**chapter, **times})
    return chapters


def _packets(
    video: VideoStream,
    segments: Sequence[Segment],
    encoding: Encoding,
    cut: Cut,
) -> Iterator[tuple[float, Packet]]:
    """The packets of all segments, with their times in the result in seconds.

    The times are those that were recorded: the containers of segments may have rounded them.
    """
    unit = encoding.time_base
    shift = round(cut.begin / unit)
    times = [time for segment in segments for time in segment.times]
    decoded = decoding_times(times)
    shown = sorted(times)
    count = 0
    extradata = None
    for segment in segments:
        with av.open(f"file:{segment.path}") as part:
            stream = part.streams.video[0]
            if segment is segments[0]:
                extradata = stream.codec_context.extradata
            elif stream.codec_context.extradata != extradata:
                raise EspanError(
                    f"{segment.path} was encoded differently from {segments[0].path}; "
                    f"delete {segment.path.parent} to begin anew"
                )
            found = 0
            for packet in part.demux(stream):
                if not packet.size:
                    continue
                found += 1
                if found > len(segment.times):
                    break
                time = times[count]
                after = bisect_left(shown, time) + 1
                packet.time_base = unit
                packet.pts, packet.dts = time - shift, decoded[count] - shift
                packet.duration = (
                    shown[after] - time if after < len(shown) else segments[-1].duration
                )
                packet.stream = video
                yield float(unit) * packet.dts, packet
                count += 1
            if found != len(segment.times):
                raise EspanError(
                    f"{segment.path} holds {found} frames, expected {len(segment.times)}; "
                    f"delete {segment.path.parent} to begin anew"
                )


def _copied(
    original: InputContainer,
    source: Source,
    others: dict[int, Stream],
    cut: Cut,
    report: Callable[[str], None],
) -> Iterator[tuple[float, Packet]]:
    """The packets of the other streams, with their times in the result in seconds."""
    if not others:
        return
    original.streams[source.index].discard = Discard.all  # need not be read
    places = {index: _Place(original.streams[index], copy, cut) for index, copy in others.items()}
    corrected: set[int] = set()
    for packet in _demuxed(original, others, report):
        if packet.size:
            index = packet.stream_index
            time = places[index].move(packet)
            if places[index].corrected and index not in corrected:
                corrected.add(index)
                report(
                    f"{_name(original.streams[index])} has times that go back: they are corrected, "
                    f"or after more than {RESTART:g} s, packets are left out until they catch up"
                )
            if time is not None:
                yield time, packet


class _Place:
    """Where the packets of one stream go."""

    def __init__(self, stream: Stream, copy: Stream, cut: Cut) -> None:
        unit = stream.time_base or Fraction(1)
        self._copy = copy
        self._unit = float(unit)
        self._shift = round(cut.begin / unit)
        self._first = None if cut.first is None else math.ceil(cut.first / unit)
        self._end = None if cut.end is None else math.ceil(cut.end / unit)
        self._picture = bool(stream.disposition & Disposition.attached_pic)
        # Muxers refuse times that go back; only subtitles may begin at the same time.
        self._step = 0 if stream.type == "subtitle" else 1
        self._least: int | None = None
        self._behind = False  # left out until the times catch up
        self.corrected = False

    def move(self, packet: Packet) -> float | None:
        """Give a packet its stream and time in the result; returns the time, None to leave out."""
        if self._picture:  # of no time
            packet.pts = packet.dts = 0
        else:
            stamp = packet.pts if packet.pts is not None else packet.dts
            if (
                stamp is None
                or (self._first is not None and stamp < self._first)
                or (self._end is not None and stamp >= self._end)
            ):
                return None
            if packet.pts is not None:
                packet.pts -= self._shift
            if packet.dts is not None:
                packet.dts -= self._shift
                if self._least is None or packet.dts >= self._least:
                    self._behind = False
                else:
                    self.corrected = True
                    self._behind |= self._unit * (self._least - packet.dts) > RESTART
                    if self._behind:
                        return None
                    packet.dts = self._least
                    packet.pts = max(packet.pts or self._least, self._least)
                self._least = packet.dts + self._step
        packet.stream = self._copy
        stamp = packet.dts if packet.dts is not None else packet.pts
        return self._unit * (stamp or 0)


def _demuxed(
    original: InputContainer, others: dict[int, Stream], report: Callable[[str], None]
) -> Iterator[Packet]:
    streams = [original.streams[index] for index in others]
    packets = original.demux(streams)
    errors = 0
    while errors < MOST_ERRORS:
        try:
            yield next(packets)
            errors = 0
        except StopIteration:
            return
        except av.FFmpegError:
            errors += 1
            packets = original.demux(streams)
    report("the input cannot be read to its end; the other streams end there")


def _write(
    result: OutputContainer,
    pictures: Iterator[tuple[float, Packet]],
    others: Iterator[tuple[float, Packet]],
) -> None:
    """Write packets roughly in the order of their times; the muxer sorts them in detail."""
    for _, packet in heapq.merge(pictures, others, key=lambda timed: timed[0]):
        result.mux_one(packet)
