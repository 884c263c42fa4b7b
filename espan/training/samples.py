"""The images of a run: those to train on, and those to measure on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from rich.console import Console
from rich.progress import Progress

from espan.data import TrainingImage, fingerprint, open_images
from espan.errors import EspanError
from espan.training.jobs import Job
from espan.training.run import Setup
from espan.training.validation import Sample, from_folder, from_held_out


@dataclass(frozen=True)
class Data:
    """What is trained and measured on.

    Attributes:
        training: the images to train on, at the scale of the first stage.
        held_out: names of images that are not trained on, but measured on; or none.
        samples: what is measured on.
    """

    training: Sequence[TrainingImage]
    held_out: Sequence[str]
    samples: Sequence[Sample]

    def images(self, scale: int) -> list[TrainingImage]:
        """The images to train on, at a scale."""
        return [dataclasses.replace(image, scale=scale) for image in self.training]

    @property
    def count(self) -> int:
        return len(self.training)

    @property
    def pixels(self) -> int:
        """Of all HR images."""
        return sum(math.prod(image.hr_size) for image in self.training)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names and pixels that are trained on."""
        return fingerprint(self.training)


def read_data(setup: Setup, todo: Sequence[Job], *, seed: int, console: Console) -> Data:
    """Read what a run needs, and check it.

    Raises:
        EspanError: what `open_images` raises; images to hold out that are not there; nothing left
            to train on; LR images for more than one scale; a folder to measure on that is wrong.
    """
    scales = {job.scale for job in todo}
    if setup.data_lr is not None and len(scales) > 1:
        raise EspanError(
            f"{setup.data_lr}: LR images are of one scale, and the stages have "
            f"{', '.join(f'x{s}' for s in sorted(scales))}; without them LR is made from HR"
        )
    scale = todo[0].scale
    largest = max(job.stage.hr_patch for job in todo)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading images")
        images, skipped = open_images(
            setup.data,
            scale=scale,
            smallest=-(-largest // scale),
            lr=setup.data_lr,
            each=lambda done, total: bar.update(task, completed=done, total=total),
        )
    for file in skipped:
        console.print(f"skipped: {file.reason}", markup=False)

    if setup.validate is not None:
        held_out: set[str] = set()
        samples = from_folder(setup.validate, setup.validate_lr)
        if setup.validate_lr is not None:
            for sample in samples:
                sample.pair(todo[-1].scale)  # raises if the sizes do not match
    else:
        held_out = _named(images, setup.hold_out) if setup.hold_out else _drawn(images, seed)
        samples = [from_held_out(i.name, i.hr) for i in images if i.name in held_out]
    training = [image for image in images if image.name not in held_out]
    if not training:
        raise EspanError(
            f"of {len(images)} images {len(held_out)} are held out to measure on, and none is left "
            "to train on; give more images, or a folder to measure on (--validate)"
        )
    data = Data(training, sorted(held_out), samples)
    console.print(
        f"{data.count} images to train on, {data.pixels / 1e6:.0f} megapixels; "
        f"{len(samples)} to measure on"
    )
    return data


def _named(images: Sequence[TrainingImage], names: Sequence[str]) -> set[str]:
    """The images of these names, with or without the folders before them."""
    by_name: dict[str, set[str]] = {}
    for image in images:
        for name in (image.name, PurePosixPath(image.name).name):
            by_name.setdefault(name, set()).add(image.name)
    if missing := sorted(set(names) - set(by_name)):
        raise EspanError(f"to be held out, but not among the images: {', '.join(missing)}")
    return set().union(*(by_name[name] for name in names))


def _drawn(images: Sequence[TrainingImage], seed: int) -> set[str]:
    names = sorted({image.name for image in images})
    count = min(8, max(1, len(names) // 20))
    return set(np.random.Generator(np.random.Philox(seed)).choice(names, count, replace=False))
