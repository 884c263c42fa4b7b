"""Upscaling files and folders: what becomes of which file, and one file after another."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from espan.errors import EspanError, ImageError
from espan.imaging import check_output, is_image_path, read_image, write_image
from espan.upscaling import Upscaler


@dataclass(frozen=True)
class Job:
    """One image file to read and the one to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `error` is None if it went well; times in seconds."""

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


def run(job: Job, upscaler: Upscaler, *, overwrite: bool) -> Outcome:
    """Do one job.  A bad image or a failed write is told in the outcome, not raised."""
    if job.target.exists() and not overwrite:
        return Outcome(job, skipped=True)
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image = read_image(job.source)
            height, width, channels = image.pixels.shape
            size = (upscaler.scale * width, upscaler.scale * height)
            check_output(job.target, *size, channels)
            pixels = upscaler(torch.from_numpy(image.pixels)).numpy()
            job.target.parent.mkdir(parents=True, exist_ok=True)
            # More pixels per inch, so that a print keeps its size.
            x, y = image.dpi or (0, 0)
            dpi = (upscaler.scale * x, upscaler.scale * y) if image.dpi else None
            write_image(job.target, replace(image, pixels=pixels, dpi=dpi))
    except (EspanError, OSError) as error:
        return Outcome(job, error=_message(error))
    except (MemoryError, torch.OutOfMemoryError):
        return Outcome(job, error=f"{job.source}: not enough memory; try a smaller --tile")
    return Outcome(
        job,
        width=size[0],
        height=size[1],
        seconds=time.perf_counter() - started,
        notes=tuple(dict.fromkeys(str(w.message) for w in caught)),
    )


def run_all(
    jobs: list[Job],
    upscaler: Upscaler,
    *,
    overwrite: bool,
    done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Do all jobs, going on after a bad one; `done` is told of each."""
    outcomes = []
    for job in jobs:
        outcomes.append(run(job, upscaler, overwrite=overwrite))
        done(outcomes[-1])
    return outcomes


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
