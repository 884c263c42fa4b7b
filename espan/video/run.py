"""Upscaling one video file: from the check of the options to the joined result."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import torch
from av import VideoFrame
from torch import Tensor

from espan._version import __version__
from espan.errors import EspanError
from espan.files import atomic_write, refuse_inputs
from espan.fused import FusedNetwork
from espan.upscaling import TileOption, Upscaler
from espan.video import hdr
from espan.video.colour import from_rgb, to_rgb
from espan.video.decode import read_frames
from espan.video.encode import Encoding, SegmentWriter, plan_encoding
from espan.video.join import Cut, join
from espan.video.pipeline import StoppedError, overlap
from espan.video.planes import read_planes
from espan.video.segments import Segment, SegmentFolder
from espan.video.source import Source, describe, names_of_side_data

CONTAINERS = {
    ".mkv": "matroska",
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".webm": "webm",
}
# x264 and x265 begin anew after 250 frames anyway, so segments of as many add no keyframes.
FRAMES = 250
BATCH_ON_GPU = 4
_HASHED = 1 << 20  # bytes at the start and at the end of the input


@dataclass(frozen=True)
class Options:
    """What is done: the options of `espan video`."""

    codec: str | None = None
    crf: float | None = None
    start: Fraction | None = None
    end: Fraction | None = None
    batch: int | None = None
    resume: bool = False
    overwrite: bool = False


@dataclass
class Progress:
    """How many frames of the result are done, those of an earlier run included, of how many."""

    done: int = 0
    resumed: int = 0
    total: int | None = None


@dataclass(frozen=True)
class Done:
    """A result: its size, its frames, and what was not kept."""

    width: int
    height: int
    frames: int
    codec: str
    notes: list[str] = field(default_factory=list)


def upscale_video(
    path: Path,
    target: Path,
    network: FusedNetwork,
    options: Options,
    *,
    tile: TileOption = "auto",
    note: Callable[[str], None] = lambda message: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> Done:
    """Upscale a video.

    Finished segments are kept in `target` + ".segments" until the result is complete.  On
    KeyboardInterrupt, the frames that have been encoded become a segment as well.

    Args:
        path, target: of the files.
        network: enlarges the frames.  Of more than 8 bits, they are computed in fp32 unless its
            dtype was given.
        options: of the run.
        tile: as for `espan.Upscaler`.
        note: called with sentences about what is not kept, and about damage.
        progress: called after each frame.

    Raises:
        EspanError: bad input or options, or a result that exists.
        OSError: a file cannot be read or written.
    """
    container = check_target(path, target, options)
    source = describe(path)
    encoding, notes = plan_encoding(source, network.scale, container, options.codec, options.crf)
    folder = SegmentFolder(target)
    job = _job(source, encoding, network, options)
    folder.resume(job) if options.resume else folder.create(job)
    upscaler = Upscaler(network, tile=tile)
    run = _Run(source, encoding, upscaler, options, folder, note, progress)
    try:
        for text in [*_warnings(source), *notes]:
            run.report(text)
        if not folder.segments:
            run.check()
        run.segments()
        with atomic_write(target) as temporary:
            run.join(temporary)
            if target.exists() and not options.overwrite:
                raise EspanError(f"{target} was written by another process in the meantime")
    except BaseException:
        if not folder.segments:
            folder.remove()  # there is nothing to resume
        raise
    folder.remove()
    frames = sum(len(segment.times) for segment in folder.segments)
    return Done(encoding.width, encoding.height, frames, encoding.codec, run.notes)


def check_target(path: Path, target: Path, options: Options) -> str:
    """The format of the result.  Raises EspanError if it cannot be written under this name."""
    container = CONTAINERS.get(target.suffix.lower())
    if container is None:
        raise EspanError(f"{target}: the name must end in {', '.join(CONTAINERS)}")
    if not target.parent.is_dir():
        raise EspanError(f"{target}: the folder {target.parent} does not exist")
    refuse_inputs([target], [path], instead="write to another name")
    if target.is_dir():
        raise EspanError(f"{target} is a folder")
    if target.exists() and not options.overwrite:
        raise EspanError(f"{target} exists; --overwrite replaces it")
    if options.start is not None and options.end is not None and options.end <= options.start:
        raise EspanError("--to must be later than --from")
    if options.batch is not None and options.batch < 1:
        raise EspanError(f"--batch {options.batch}: expected a number of frames, at least 1")
    return container


def _warnings(source: Source) -> Iterator[str]:
    if source.colour.hdr is not None:
        yield (
            f"the video is HDR ({source.colour.hdr}): it is upscaled like SDR, on which the "
            "networks are trained"
        )
    for name in sorted({hdr.DYNAMIC[key] for key in source.side_data if key in hdr.DYNAMIC}):
        yield f"the {name} metadata is not kept"
    if source.interlaced:
        yield "the video is interlaced, but is upscaled as if it was not; deinterlace it first"


def _job(
    source: Source, encoding: Encoding, network: FusedNetwork, options: Options
) -> dict[str, object]:
    """What segments depend on, in terms that can be read in an error message."""
    weights = hashlib.sha256(repr(network.architecture.to_dict()).encode())
    for tensor in network.plain.state_dict().values():
        weights.update(tensor.cpu().numpy().tobytes())
    with source.path.open("rb") as file:
        content = hashlib.sha256(file.read(_HASHED))
        size = file.seek(0, 2)
        file.seek(max(0, size - _HASHED))
        content.update(file.read())
    return {
        "the input's size in bytes": size,
        "the input's content": content.hexdigest()[:16],
        "the content of --weights": weights.hexdigest()[:16],
        "the codec": encoding.codec,
        "--crf": None if options.crf is None else float(options.crf),
        "--from": None if options.start is None else str(options.start),
        "--to": None if options.end is None else str(options.end),
        "the device": network.device.type,
        "the backend": network.backend,
        "the dtype": str(network.options["dtype"]),
        "espan": __version__,
        "PyAV": av.__version__,
        "FFmpeg": av.ffmpeg_version_info,
    }


@dataclass
class _Frame:
    """A decoded or an enlarged frame: its planes, or on a CPU its RGB image alone."""

    tensors: list[Tensor]
    time: int
    duration: int
    captions: VideoFrame | None


class _Run:
    """A run in progress."""

    def __init__(
        self,
        source: Source,
        encoding: Encoding,
        upscaler: Upscaler,
        options: Options,
        folder: SegmentFolder,
        note: Callable[[str], None],
        progress: Callable[[Progress], None],
    ) -> None:
        self.source, self.encoding, self.upscaler = source, encoding, upscaler
        self.folder = folder
        self.notes: list[str] = []
        self._note, self._progress = note, progress
        self._first = self._time(options.start)
        self._end = self._time(options.end)
        # A GPU converts colours as well, and fewer bytes are copied to and from it.  On a CPU, the
        # threads that decode and encode convert them, while the network runs.
        self._on_gpu = upscaler.device.type == "cuda"
        self._batch = options.batch or (BATCH_ON_GPU if self._on_gpu else 1)

    def report(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)
            self._note(text)

    def check(self) -> None:
        """Encode a frame and begin a file, so that hours of work do not end with an error."""
        encoding = self.encoding
        shapes = encoding.layout.shapes(encoding.height, encoding.width)
        dtype = torch.uint8 if encoding.layout.bits == 8 else torch.uint16
        planes = [torch.zeros(shape, dtype=dtype) for shape in shapes]
        with self.folder.scratch() as part, self.folder.scratch() as whole:
            av.logging.set_level(av.logging.ERROR)  # so that errors have reasons
            try:
                with av.logging.Capture(), SegmentWriter(part, encoding) as writer:
                    writer.write(planes, 0, 1)
                    writer.close()
            finally:
                av.logging.set_level(None)
            segment = Segment(part, writer.times, 1, [])
            join(
                whole,
                self.source,
                encoding,
                [segment],
                Cut(self.source.start),
                report=self.report,
                header_only=True,
            )

    def segments(self) -> None:
        """Make the segments that are missing."""
        done = self.folder.segments
        for segment in done:
            for text in segment.notes:
                self.report(text)
        state = Progress(total=self._total())
        state.done = state.resumed = sum(len(segment.times) for segment in done)
        self._progress(state)
        frames = read_frames(
            self.source,
            first=self._first,
            after=max(done[-1].times) if done else None,
            end=self._end,
            report=self.report,
        )

        def consume(results: Iterable[_Frame]) -> None:
            results = _on_one_core(results)
            for first in results:
                self._segment(
                    itertools.chain([first], itertools.islice(results, FRAMES - 1)), state
                )

        depth = max(4, 2 * self._batch)
        decoded = _on_one_core(map(self._read, frames))
        threads = torch.get_num_threads()
        try:
            overlap(decoded, self._enlarge, consume, batch=self._batch, depth=depth)
        finally:
            torch.set_num_threads(threads)
        if not done:
            raise EspanError(f"{self.source.path}: no frames between --from and --to")

    def join(self, target: Path) -> None:
        times = [time for segment in self.folder.segments for time in segment.times]
        unit = self.source.time_base
        begin = self.source.start if self._first is None else min(times) * unit
        first = None if self._first is None else begin
        end = None if self._end is None else self._end * unit
        cut = Cut(begin, first, end)
        join(target, self.source, self.encoding, self.folder.segments, cut, report=self.report)

    def _segment(self, frames: Iterable[_Frame], state: Progress) -> None:
        with self.folder.scratch() as part, SegmentWriter(part, self.encoding) as writer:
            last = None
            stopped: StoppedError | None = None
            try:
                for last in frames:
                    planes = last.tensors if self._on_gpu else self._planes(last.tensors[0])
                    writer.write(planes, last.time, last.duration, last.captions)
                    state.done += 1
                    self._progress(state)
            except StoppedError as error:  # keep what there is
                stopped = error
            if last is not None:
                writer.close()
                self.folder.add(part, writer.times, last.duration, list(self.notes))
            if stopped is not None:
                raise stopped

    def _read(self, frame: VideoFrame) -> _Frame:
        captions = frame if "A53_CC" in names_of_side_data(frame) else None
        assert frame.pts is not None
        time, duration = frame.pts, frame.duration or self.source.step
        planes = read_planes(frame, self.source.layout, pinned=self._on_gpu)
        tensors = planes if self._on_gpu else [self._image(planes)]
        return _Frame(tensors, time, duration, captions)

    def _enlarge(self, frames: list[_Frame]) -> Iterator[_Frame]:
        images = [self._image(f.tensors) if self._on_gpu else f.tensors[0] for f in frames]
        for frame, image in zip(frames, self.upscaler(images), strict=True):
            tensors = self._download(self._planes(image)) if self._on_gpu else [image]
            yield _Frame(tensors, frame.time, frame.duration, frame.captions)

    def _image(self, planes: list[Tensor]) -> Tensor:
        device = self.upscaler.device
        there = [plane.to(device, non_blocking=True) for plane in planes]
        return to_rgb(there, self.source.layout, self.source.colour)

    def _planes(self, image: Tensor) -> list[Tensor]:
        return from_rgb(image, self.encoding.layout, self.encoding.colour)

    def _download(self, planes: list[Tensor]) -> list[Tensor]:
        copies = [torch.empty(p.shape, dtype=p.dtype, pin_memory=True) for p in planes]
        for copy, plane in zip(copies, planes, strict=True):
            copy.copy_(plane, non_blocking=True)
        torch.cuda.current_stream(self.upscaler.device).synchronize()
        return copies

    def _time(self, seconds: Fraction | None) -> int | None:
        """The first time of the input, in its units, that is not before this one."""
        if seconds is None:
            return None
        return math.ceil((self.source.start + seconds) / self.source.time_base)

    def _total(self) -> int | None:
        source = self.source
        if self._first is None and self._end is None:
            return source.frames
        if source.duration is None:
            return None
        begin = (
            Fraction(0) if self._first is None else self._first * source.time_base - source.start
        )
        end = source.duration
        if self._end is not None:
            end = min(end, self._end * source.time_base - source.start)
        return max(0, round((end - begin) * source.rate))


def _on_one_core(items: Iterable[_Frame]) -> Iterator[_Frame]:
    """Iterate with PyTorch on one core of the thread that iterates; others keep their number.

    The cores are needed for the network and the encoder.
    """
    torch.set_num_threads(1)
    yield from items
