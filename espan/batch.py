"""Upscale files and folders: plan the output files, then process one image after another.

While the network runs, the next file is decoded and the previous result is encoded.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from espan.errors import EspanError, ImageError, out_of_memory
from espan.files import file_identity, refuse_inputs
from espan.imaging import (
    Image,
    check_output,
    find_images,
    is_image_path,
    read_image,
    without_opaque_alpha,
    write_image,
)
from espan.upscaling import Upscaler

_INSTEAD = "write to another folder, or give a --suffix"


@dataclass(frozen=True)
class Job:
    """One image file to read and the one to write; `error` if it cannot be done at all."""

    source: Path
    target: Path
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of a job: `error` is None if it succeeded; `seconds` excludes waiting."""

    job: Job
    error: str | None = None
    skipped: bool = False
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def plan(
    inputs: Iterable[Path],
    output: Path,
    *,
    suffix: str = "",
    format: str | None = None,
    overwrite: bool = False,
) -> list[Job]:
    """Decide the target of every image before anything is computed.

    If there is one input file and `output` is not a folder, `output` is the target.  Otherwise
    `output` is a folder in which the tree of each input folder is kept; `name_results` chooses the
    names.  A folder that cannot be read becomes a job with an error.

    Args:
        inputs: image files, and folders, which are searched with their subfolders.
        output: a file or a folder.
        suffix: added to the stem of each name.  Where results are written beside their inputs,
            images named as the result of another one, in any format, are results of an earlier run,
            not inputs.
        format: "png", "jpg", ..., the suffix of all names; default: as `name_results`.
        overwrite: existing targets will be replaced.

    Raises:
        EspanError: an input that does not exist, a folder without images, two images with one
            name from two folders, a target that is an input, an output folder that is named like
            an image, or a bad suffix or format.
    """
    inputs = list(inputs)
    if Path("-") in (*inputs, output):
        raise EspanError("standard input and output are not supported")
    if missing := [path for path in inputs if not _exists(path)]:
        raise EspanError(f"no such file or folder: {', '.join(map(str, missing))}")
    if any(separator in suffix for separator in ("/", "\0", os.sep, os.altsep or os.sep)):
        raise EspanError(
            f"--suffix {suffix!r} cannot contain a path separator; it is part of a file name"
        )
    if format is not None:
        format = format.lower().removeprefix(".")
        check_output(output, 1, 1, 3, format=format)
    if len(inputs) == 1 and _is_file(inputs[0]) and not output.is_dir() and output.suffix:
        kind = check_output(output, 1, 1, 3)
        if format is not None and check_output(output, 1, 1, 3, format=format) != kind:
            raise EspanError(f"--format {format} contradicts the suffix of the output, {output}")
        target = output.with_name(output.stem + suffix + output.suffix)
        refuse_inputs([target], inputs, instead=_INSTEAD)
        return [Job(inputs[0], target)]
    if output.exists() and not output.is_dir():
        raise EspanError(
            f"{output} is a file; several images need an output folder"
            if len(inputs) > 1 or inputs[0].is_dir()
            else f"{output} exists, and its name has no suffix of an image; give a name such as "
            "big.png, or a folder"
        )
    if not output.exists() and is_image_path(output):
        raise EspanError(
            f"{output} would be a folder, because there are several inputs or a folder; give a "
            "name without the suffix of an image"
        )
    found: dict[tuple[str, str], Path] = {}
    unreadable: list[Job] = []
    for path in inputs:
        if _is_file(path):
            found.setdefault((os.path.realpath(path), path.name), path)
            continue
        images, errors = find_images(path, leave_out=output)
        for source, name in images.items():
            found.setdefault((os.path.realpath(source), name), source)
        for error in errors:
            folder = Path(error.filename)
            target = output / folder.relative_to(path)
            unreadable.append(Job(folder, target, f"{folder}: {error.strerror}; not searched"))
    sources = [(source, Path(name)) for (_, name), source in found.items()]
    jobs = name_results(sources, output, suffix=suffix, format=format)
    protected = [job.source for job in jobs]
    if overwrite:
        protected += [path for path in inputs if _is_file(path)]
    refuse_inputs((job.target for job in jobs), protected, instead=_INSTEAD)
    return jobs + unreadable


def name_results(
    images: Sequence[tuple[Path, Path]],
    output: Path,
    *,
    suffix: str = "",
    format: str | None = None,
) -> list[Job]:
    """Give each image (path, relative path) a distinct target below `output`.

    "a.jpg" becomes "a" + suffix + "." + format; without a format it keeps its suffix, or has .png
    if that cannot be written.  Where several images would get the same name, the one that already
    has the suffix keeps it, and the others become "a_jpg.png", "a_webp.png".  Names depend on the
    images alone, not on which results exist.

    With a `suffix`, an image whose name is that of another image's result, in any format, counts as
    that result and is left out.

    Raises EspanError for two images with the same relative path.
    """
    groups: dict[tuple[int, Path, str, str], list[int]] = {}
    for index, (_, relative) in enumerate(images):
        ending = _ending(relative, format)
        key = (len(relative.stem), relative.parent, relative.stem, ending)
        groups.setdefault(key, []).append(index)
    jobs: dict[int, Job] = {}
    taken: dict[str, int] = {}  # the real path of a target -> its image
    results: set[str] = set()  # real paths, without .png, .jpg, ...
    # Shorter names first: with a suffix, the name of a result is longer than that of its image.
    for key in sorted(groups):
        (_, parent, stem, ending), group = key, groups[key]
        if suffix:
            group = [i for i in group if _without_ending(images[i][0]) not in results]
        for index in group:
            source, relative = images[index]
            name = stem
            if len(group) > 1 and relative.suffix != ending:
                name = f"{stem}_{relative.suffix[1:]}"
            target = output / parent / f"{name}{suffix}{ending}"
            while (place := os.path.realpath(target)) in taken:
                other = images[taken[place]]
                if other[1] == relative:
                    raise EspanError(
                        f"{other[0]} and {source} would both be written to {target}; upscale the "
                        "folders separately, into different output folders"
                    )
                name = f"{name}_{relative.suffix[1:]}"
                target = output / parent / f"{name}{suffix}{ending}"
            taken[place] = index
            for each in (stem, f"{stem}_{relative.suffix[1:]}"):
                results.add(_without_ending(target.with_name(f"{each}{suffix}{ending}")))
            jobs[index] = Job(source, target)
    return [jobs[index] for index in sorted(jobs)]


def run_all(
    jobs: list[Job],
    upscaler: Upscaler,
    *,
    overwrite: bool,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run all jobs.  A failure is reported in the outcome of its job and does not stop the others.

    The network, decoding of the next image and encoding of the previous result each have a thread.
    `done` is called with each outcome, in the order of the jobs.  If an exception ends the run,
    Ctrl-C for instance, the result that is being encoded is still written.  The network is not
    waited for: it may take minutes, and its thread ends with its call.
    """
    outcomes: list[Outcome] = []
    written: set[tuple[int, int] | None] = set()

    def finish(work: Future[_Work]) -> None:
        outcomes.append(work.result().outcome())
        done(outcomes[-1])

    with (
        _notes_by_thread(),
        ThreadPoolExecutor(1) as writer,
        _abandoned_on_errors() as reader,
        _abandoned_on_errors() as network,
    ):

        def read(i: int) -> Future[_Work] | None:
            if i == len(jobs):
                return None
            work = _Work(jobs[i], upscaler.scale, overwrite, written, error=jobs[i].error)
            return reader.submit(work.read)

        reading = read(0)
        writing: Future[_Work] | None = None
        for i in range(len(jobs)):
            assert reading is not None
            work = reading.result()
            reading = read(i + 1)
            # Not in this thread: while an op runs in it, Python does not react to signals.
            network.submit(work.upscale, upscaler).result()
            if writing is not None:
                finish(writing)
            writing = writer.submit(work.write)
        if writing is not None:
            finish(writing)
    return outcomes


@contextlib.contextmanager
def _abandoned_on_errors() -> Iterator[ThreadPoolExecutor]:
    """A thread that an exception does not wait for."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@dataclass
class _Work:
    """A job in progress, and its image after the last step.

    After a step that failed or skipped the job, the following steps do nothing.
    """

    job: Job
    scale: int
    overwrite: bool
    written: set[tuple[int, int] | None]  # the files that this batch has written
    image: Image | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    skipped: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def read(self) -> _Work:
        if self.error is not None:
            return self
        with self._step():
            if self._is_done():
                return self
            image = read_image(self.job.source)
            height, width, channels = image.pixels.shape
            self.size = (self.scale * width, self.scale * height)
            if check_output(self.job.target, *self.size, 3) == "jpeg":
                image = replace(image, pixels=without_opaque_alpha(image.pixels))
                channels = image.pixels.shape[2]
            check_output(self.job.target, *self.size, channels)
            self.image = image
        return self

    def upscale(self, upscaler: Upscaler) -> None:
        if self.image is None:
            return
        image, self.image = self.image, None
        with self._step():
            if self._is_done():
                return
            pixels = upscaler(image.pixels)
            # More pixels per inch, so that a print keeps its size.
            x, y = image.dpi or (0, 0)
            dpi = (self.scale * x, self.scale * y) if image.dpi else None
            self.image = replace(image, pixels=pixels, dpi=dpi)

    def write(self) -> _Work:
        if self.image is None:
            return self
        with self._step():
            target = self.job.target
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._is_done():
                return self
            write_image(target, self.image)
            self.written.add(file_identity(target))
        self.image = None
        return self

    def _is_done(self) -> bool:
        """Whether the result exists; another process may have written it in the meantime."""
        self.skipped = self._target_exists() and not self.overwrite
        return self.skipped

    def _target_exists(self) -> bool:
        """Raise EspanError if this batch wrote it: "A.png" and "a.png" may be the same file."""
        exists = self.job.target.exists()
        if exists and file_identity(self.job.target) in self.written:
            raise EspanError(
                f"{self.job.source}: {self.job.target} is already the result of another image; "
                "this file system does not distinguish the two names"
            )
        return exists

    def outcome(self) -> Outcome:
        if self.error is not None or self.skipped:
            return Outcome(self.job, error=self.error, skipped=self.skipped)
        # The reader's warnings begin with the file, which the outcome names as well.
        notes = tuple(dict.fromkeys(n.removeprefix(f"{self.job.source}: ") for n in self.notes))
        return Outcome(
            self.job, width=self.size[0], height=self.size[1], seconds=self.seconds, notes=notes
        )

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Record the time, the warnings, and the errors that are not defects of espan."""
        started = time.perf_counter()
        _current.notes = self.notes
        try:
            yield
        except (EspanError, OSError) as error:
            self.error = _message(error)
        except Exception as error:
            if not out_of_memory(error):
                raise
            self.error = f"{self.job.source}: not enough memory; try a smaller --tile"
        finally:
            _current.notes = None
            self.seconds += time.perf_counter() - started


_current = threading.local()


@contextlib.contextmanager
def _notes_by_thread() -> Iterator[None]:
    """Record every warning with the work of the thread that issues it.

    There is one `catch_warnings` around all threads because it is not thread-safe.
    """
    with warnings.catch_warnings():
        show = warnings.showwarning

        def note(message: Warning | str, *about: Any, **more: Any) -> None:
            notes = getattr(_current, "notes", None)
            if notes is None:
                show(message, *about, **more)
            else:
                notes.append(str(message))

        warnings.simplefilter("always")
        warnings.showwarning = note
        yield


def share_of_process() -> tuple[int, int]:
    """(rank, number of processes) that `torchrun` started to share the work; (0, 1) without it.

    Raises EspanError if RANK and WORLD_SIZE are inconsistent.  Warns if only one is set.
    """
    rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None or world is None:
        if rank != world:
            name = "RANK" if world is None else "WORLD_SIZE"
            warnings.warn(
                f"{name} is set without {'WORLD_SIZE' if world is None else 'RANK'}; torchrun sets "
                "both, so the work is not shared",
                stacklevel=2,
            )
        return 0, 1
    if not (_is_number(rank) and _is_number(world) and int(rank) < int(world)):
        raise EspanError(
            f"RANK={rank} and WORLD_SIZE={world} are inconsistent: RANK must be one of 0 ... "
            "WORLD_SIZE - 1; unset both, or launch with torchrun"
        )
    return int(rank), int(world)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _ending(relative: Path, format: str | None) -> str:
    """The suffix of the result's name."""
    if format is not None:
        return f".{format}"
    try:
        check_output(relative, 1, 1, 3)
    except ImageError:
        return ".png"
    return relative.suffix


def _without_ending(path: Path) -> str:
    return os.path.splitext(os.path.realpath(path))[0]


def _exists(path: Path) -> bool:
    """Whether the path exists; True if unknown, because reading it later reports the reason."""
    try:
        return path.exists()
    except OSError:
        return True


def _is_file(path: Path) -> bool:
    """Whether the path is a file; True if unknown, because reading it later reports the reason."""
    try:
        return path.is_file()
    except OSError:
        return True


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
