"""Upscaling files and folders: what becomes of which file, and all of them one after another.

While the network runs, the next file is decoded and the last result is encoded.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from espan.errors import EspanError, ImageError
from espan.imaging import Image, check_output, is_image_path, read_image, write_image
from espan.upscaling import Upscaler


@dataclass(frozen=True)
class Job:
    """One image file to read and the one to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `error` is None if it went well; its own work took `seconds`."""

    job: Job
    error: str | None = None
    skipped: bool = False
    width: int = 0
    height: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


def plan(
    inputs: Iterable[Path], output: Path, *, suffix: str = "", format: str | None = None
) -> list[Job]:
    """Decide the target of every image before anything is computed.

    One input file and an `output` that is not a folder: that file.  Otherwise `output` is a folder
    that keeps the tree of each input folder.  `suffix` is added to each name; `format` ("png", ...)
    replaces the ending, and endings that cannot be written become .png.

    Raises:
        EspanError: an input that does not exist, a folder without images, two inputs with one
            target, or a target that is an input.
    """
    inputs = list(inputs)
    missing = [p for p in inputs if not p.exists()]
    if missing:
        raise EspanError(f"no such file or folder: {', '.join(map(str, missing))}")
    if format is not None:
        check_output(f"image.{format}", 1, 1, 3)
    if len(inputs) == 1 and inputs[0].is_file() and not output.is_dir() and output.suffix:
        check_output(output, 1, 1, 3)
        target = output.with_name(output.stem + suffix + output.suffix)
        jobs = [Job(inputs[0], target if format is None else target.with_suffix(f".{format}"))]
    else:
        if output.exists() and not output.is_dir():
            raise EspanError(f"{output} is a file; for several images a folder is expected")
        jobs = [
            Job(source, output / relative.with_name(_name(relative, suffix, format)))
            for path in inputs
            for source, relative in _images(path, output)
        ]
    targets: dict[Path, Path] = {}
    sources = {job.source.resolve() for job in jobs}
    for job in jobs:
        target = job.target.resolve()
        if target in targets:
            raise EspanError(f"{targets[target]} and {job.source} would both become {job.target}")
        if target in sources:
            raise EspanError(f"{job.target} is an input; choose another folder or a --suffix")
        targets[target] = job.source
    return jobs


def run_all(
    jobs: list[Job],
    upscaler: Upscaler,
    *,
    overwrite: bool,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Do all jobs; a bad image or a failed write is told in its outcome, and the rest goes on.

    The network runs in this thread; one image is decoded ahead and one encoded behind it, each in
    a thread of its own.  `done` is told of each job, in their order.  When this is left by an
    exception, a Ctrl-C for instance, the result that is being encoded is still written.
    """
    outcomes: list[Outcome] = []

    def finish(work: Future[_Work]) -> None:
        outcomes.append(work.result().outcome())
        done(outcomes[-1])

    with _notes_by_thread(), ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:

        def read(i: int) -> Future[_Work] | None:
            if i == len(jobs):
                return None
            return reader.submit(_Work(jobs[i], upscaler.scale).read, overwrite)

        reading = read(0)
        writing: Future[_Work] | None = None
        for i in range(len(jobs)):
            assert reading is not None
            work = reading.result()
            reading = read(i + 1)
            work.upscale(upscaler)
            if writing is not None:
                finish(writing)
            writing = writer.submit(work.write)
        if writing is not None:
            finish(writing)
    return outcomes


@dataclass
class _Work:
    """A job on its way, with what the last step made of its image.

    Steps do nothing after one that failed, or where there is nothing to do.
    """

    job: Job
    scale: int
    image: Image | None = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None
    skipped: bool = False
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def read(self, overwrite: bool) -> _Work:
        if self.job.target.exists() and not overwrite:
            self.skipped = True
            return self
        with self._step():
            image = read_image(self.job.source)
            height, width, channels = image.pixels.shape
            self.size = (self.scale * width, self.scale * height)
            check_output(self.job.target, *self.size, channels)
            self.image = image
        return self

    def upscale(self, upscaler: Upscaler) -> None:
        if self.image is None:
            return
        image, self.image = self.image, None
        with self._step():
            pixels = upscaler(image.pixels)
            # More pixels per inch, so that a print keeps its size.
            x, y = image.dpi or (0, 0)
            dpi = (self.scale * x, self.scale * y) if image.dpi else None
            self.image = replace(image, pixels=pixels, dpi=dpi)

    def write(self) -> _Work:
        if self.image is None:
            return self
        with self._step():
            self.job.target.parent.mkdir(parents=True, exist_ok=True)
            write_image(self.job.target, self.image)
        self.image = None
        return self

    def outcome(self) -> Outcome:
        if self.error is not None or self.skipped:
            return Outcome(self.job, error=self.error, skipped=self.skipped)
        # An outcome names its file; so do the warnings of the reader.
        notes = tuple(dict.fromkeys(n.removeprefix(f"{self.job.source}: ") for n in self.notes))
        return Outcome(
            self.job, width=self.size[0], height=self.size[1], seconds=self.seconds, notes=notes
        )

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Take the time, the warnings, and the errors that a user can mend."""
        started = time.perf_counter()
        _told.notes = self.notes
        try:
            yield
        except (EspanError, OSError) as error:
            self.error = _message(error)
        except (MemoryError, torch.OutOfMemoryError):
            self.error = f"{self.job.source}: not enough memory; try a smaller --tile"
        finally:
            _told.notes = None
            self.seconds += time.perf_counter() - started


_told = threading.local()


@contextlib.contextmanager
def _notes_by_thread() -> Iterator[None]:
    """Give every warning to the work of the thread that warns.

    One `catch_warnings` around all threads, since it is not made to be entered by several.
    """
    with warnings.catch_warnings():
        otherwise = warnings.showwarning

        def note(message: Warning | str, *about: Any, **more: Any) -> None:
            notes = getattr(_told, "notes", None)
            if notes is None:
                otherwise(message, *about, **more)
            else:
                notes.append(str(message))

        warnings.simplefilter("always")
        warnings.showwarning = note
        yield


def share_of_rank(jobs: list[Job]) -> list[Job]:
    """The part of the jobs that falls to this process: all, or every n-th under torchrun."""
    rank, world = (int(os.environ.get(k, d)) for k, d in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return jobs[rank::world]


def _images(path: Path, output: Path) -> list[tuple[Path, Path]]:
    """Image files with their place below `path`; what lies in the output folder is left out."""
    if path.is_file():
        return [(path, Path(path.name))]
    ours = output.resolve()
    found = [
        (Path(folder) / name, (Path(folder) / name).relative_to(path))
        for folder, _, names in sorted(os.walk(path))
        for name in sorted(names)
        if is_image_path(name) and not (ours != path.resolve() and _below(Path(folder), ours))
    ]
    if not found:
        raise ImageError(f"{path} holds no images (by their endings)")
    return found


def _below(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other)


def _name(relative: Path, suffix: str, format: str | None) -> str:
    if format is not None:
        return f"{relative.stem}{suffix}.{format}"
    try:
        check_output(relative, 1, 1, 3)
    except ImageError:
        return f"{relative.stem}{suffix}.png"
    return f"{relative.stem}{suffix}{relative.suffix}"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
