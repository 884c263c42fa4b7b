"""Reading frames: from any time on, past damage, each with a time of its own."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
from av import VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from espan.errors import EspanError
from espan.video.source import Source, open_input
from espan.video.times import clock

# In these, each packet is a frame to be shown, so that a packet without a frame is a loss.
_FRAME_PER_PACKET = {"h264", "hevc", "mpeg2video", "mpeg4", "libdav1d", "av1"}
# In these, lost data leave no trace but a gap of more than so many frames; telecine makes 1.5.
_CONTINUOUS = {"mpegts", "mpeg"}
_GAP = Fraction(7, 4)
# A file that ends earlier than its header says by more seconds than this is incomplete.
_TOLERANCE = Fraction(1, 2)
# Times that go back by more seconds than this are those of another file that was appended.
RESTART = 1.0
# These containers have no times of presentation, and FFmpeg guesses wrong ones for frames that are
# reordered; their times of decoding are right, but for the delay of the decoder.
_WITHOUT_TIMES = {"avi", "asf"}
_REORDERED = {"h264", "hevc"}
# A damaged file gives up after so many errors without a packet between them.
MOST_ERRORS = 100


def read_frames(
    source: Source,
    *,
    first: int | None = None,
    after: int | None = None,
    end: int | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Iterator[VideoFrame]:
    """The frames of a video in the order in which they are shown; `pts` increases.

    Args:
        source: what `describe` returned.
        first: frames before this time are left out.
        after: so are frames at or before this time, which is that of a frame.
        end: so are frames at or after this time.  Times are in units of `source.time_base`.
        report: called with a sentence about each damaged stretch, which is left out, and about
            frames whose size differs, which are scaled.
    """
    wanted = first if after is None else after
    damage = _Damage(source, report)
    gap = int(_GAP / (source.rate * source.time_base))
    with open_input(source.path) as container:
        continuous = container.format.name in _CONTINUOUS
        frames = _from(container, source, wanted, damage)
        previous: int | None = None
        resized = restarted = False
        for frame in frames:
            if frame.pts is None:  # raw streams have no times
                frame.pts = 0 if previous is None else previous + source.step
            if previous is not None and (previous - frame.pts) * source.time_base > RESTART:
                if not restarted:
                    time = clock(previous * source.time_base - source.start)
                    report(
                        f"after {time}, the times of the video go back, as where files were "
                        "concatenated; frames are left out until the times catch up"
                    )
                restarted = True
            if frame.is_corrupt or (previous is not None and frame.pts <= previous):
                damage.add()
                continue
            skipped = (first is not None and frame.pts < first) or (
                after is not None and frame.pts <= after
            )
            if continuous and previous is not None and frame.pts - previous > gap:
                damage.add()
            damage.until(frame.pts, quiet=skipped)
            previous = frame.pts
            if skipped:
                continue
            if end is not None and frame.pts >= end:
                return
            if (frame.width, frame.height) != (source.width, source.height):
                if not resized:
                    time = clock(frame.pts * source.time_base - source.start)
                    report(
                        f"at {time}, the frames become {frame.width}x{frame.height}; they are "
                        f"scaled to {source.width}x{source.height}"
                    )
                    resized = True
                frame = frame.reformat(source.width, source.height, interpolation="BICUBIC")
            yield frame
        damage.until(None)
        last = source.start
        if previous is not None:
            last = previous * source.time_base + 1 / source.rate
        if source.end is not None and last < source.end - _TOLERANCE:
            report(
                f"the video ends at {clock(last - source.start)}, but should last until "
                f"{clock(source.end - source.start)}"
            )


def _from(
    container: InputContainer, source: Source, wanted: int | None, damage: _Damage
) -> Iterator[VideoFrame]:
    """Frames from one at or before the wanted time on, or from the start of the file."""
    stream = _stream(container, source)
    if wanted is not None and wanted * source.time_base > source.start:
        try:
            container.seek(wanted, stream=stream)
            frames = _decoded(container, stream, damage)
            frame = next(frames, None)
            if frame is not None and frame.pts is not None and frame.pts <= wanted:
                yield frame
                yield from frames
                return
        except av.FFmpegError:
            pass
        # Not every format can be searched: read it all.
        damage.forget()
        with open_input(source.path) as again:
            yield from _decoded(again, _stream(again, source), damage)
        return
    yield from _decoded(container, stream, damage)


def _stream(container: InputContainer, source: Source) -> VideoStream:
    stream = container.streams[source.index]
    assert isinstance(stream, VideoStream)
    stream.thread_type = "AUTO"
    return stream


def _decoded(
    container: InputContainer, stream: VideoStream, damage: _Damage
) -> Iterator[VideoFrame]:
    """All frames that can be decoded; the others are added to `damage`."""
    packets = container.demux(stream)
    errors = 0
    started = False
    expected: list[int] = []  # the times of packets whose frames have not been seen yet
    codec = stream.codec_context.name
    by_dts = container.format.name in _WITHOUT_TIMES and codec in _REORDERED
    counts = codec in _FRAME_PER_PACKET and not by_dts
    begin: int | None = None  # the time of the first packet, and so of the first frame
    delay: int | None = None
    shown = 0
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            damage.add()
            errors += 1
            if errors == MOST_ERRORS:
                raise EspanError(f"{damage.source.path}: {error.strerror}") from error
            packets = container.demux(stream)
            continue
        if packet.is_corrupt:
            damage.add()
        if packet.size:
            errors = 0
            begin = packet.dts if begin is None else begin
            if counts and packet.pts is not None and not packet.is_discard:
                insort(expected, packet.pts)
        try:
            frames = packet.decode()
        except av.FFmpegError:
            damage.add()
            continue
        for frame in frames:
            if by_dts and begin is not None:
                if frame.dts is None:  # one of the last ones, which the decoder held back
                    frame.pts = shown + damage.source.step
                else:
                    delay = frame.dts - begin if delay is None else delay
                    frame.pts = frame.dts - delay
                shown = frame.pts
            if frame.pts is not None:
                # Frames before the first one refer to frames before the place that was sought.
                lost = [time for time in expected if time < frame.pts]
                del expected[: len(lost) + (frame.pts in expected)]
                if lost and started:
                    damage.add()
            started = True
            yield frame
    if started and expected:
        damage.add()


class _Damage:
    """The damaged stretch since the last good frame, if there is one."""

    def __init__(self, source: Source, report: Callable[[str], None]) -> None:
        self.source = source
        self._report = report
        self._since: int | None = None
        self._last: int | None = None
        self._found = False

    def add(self) -> None:
        if not self._found:
            self._since = self._last
            self._found = True

    def forget(self) -> None:
        self._found, self._last = False, None

    def until(self, time: int | None, *, quiet: bool = False) -> None:
        """Report the stretch that ends with a good frame at this time, or with the video."""
        if self._found and not quiet:
            step = 1 / self.source.rate
            begin = self._clock(self._since, step) if self._since is not None else "the start"
            end = "the end" if time is None else self._clock(time, Fraction(0))
            self._report(f"from {begin} to {end}, the video is damaged; this part is left out")
        self._found = False
        self._last = time

    def _clock(self, time: int, plus: Fraction) -> str:
        return clock(time * self.source.time_base + plus - self.source.start)
