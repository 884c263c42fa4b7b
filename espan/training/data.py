"""The images of a run: those to train on, and those to validate on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress

from espan.data import (
    TrainingImage,
    check_lr,
    fingerprint,
    move_to_pack,
    open_images,
    some_names,
    with_lr,
)
from espan.errors import EspanError
from espan.imaging import lr_folders
from espan.training.processes import run_once
from espan.training.run import Setup
from espan.training.stages import StageRun
from espan.training.validation import ValidationImage, checked, from_folder, from_photographs


@dataclass(frozen=True)
class Data:
    """Images to train and to validate on.

    Attributes:
        training: the training images, at the scale of the first stage.
        held_out: names of the images in the data that are validated on instead.
        validation: the validation images.
        others: the training images at the other scales, where their LR images are given.
    """

    training: Sequence[TrainingImage]
    held_out: Sequence[str]
    validation: Sequence[ValidationImage]
    others: Mapping[int, Sequence[TrainingImage]] = field(default_factory=dict)

    def images(self, scale: int) -> Sequence[TrainingImage]:
        """The training images, at another scale."""
        if scale in self.others:
            return self.others[scale]
        return [dataclasses.replace(image, scale=scale) for image in self.training]

    @property
    def pixels(self) -> int:
        """Number of HR pixels of the training images."""
        return sum(math.prod(image.hr_size) for image in self.training)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names and pixels of the training images."""
        others = (image for images in self.others.values() for image in images)
        return fingerprint([*self.training, *others])

    @property
    def validated(self) -> list[str]:
        """The hash of each validation image."""
        return [image.sha256 for image in self.validation]


def read_data(
    setup: Setup,
    stages: Sequence[StageRun],
    *,
    console: Console,
    accelerator: Accelerator,
) -> Data:
    """Read and check the images of a run.

    One process of each machine decodes them.  Where there are several processes, it writes what it
    decoded to a temporary pack, which all processes of the machine map into memory.

    Raises:
        EspanError: as `open_images`; images to hold out that do not exist; no images left to train
            on; LR images that lack the scale of a stage; validation images that cannot be read,
            are too small for a stage or whose LR image is not of a stage's scale.
    """
    with contextlib.ExitStack() as stack:

        def read() -> Data:
            pack = None
            if accelerator.num_processes > 1:
                pack = Path(stack.enter_context(TemporaryDirectory(prefix="espan-"))) / "pack"
            return _read(setup, stages, console=console, pack=pack)

        data = run_once(accelerator, read, per_machine=True)
        accelerator.wait_for_everyone()  # the maps outlive the file
    console.print(
        f"{len(data.training)} images to train on, {data.pixels / 1e6:.0f} megapixels; "
        f"{len(data.validation)} to validate on"
    )
    if data.held_out and not setup.hold_out:
        console.print(f"held out: {', '.join(data.held_out)}", markup=False)
    return data


def _read(setup: Setup, stages: Sequence[StageRun], *, console: Console, pack: Path | None) -> Data:
    scales = {stage.scale: stage.name for stage in reversed(stages)}  # and its first stage
    folders: dict[int, Path] = {}
    if setup.data_lr is not None:
        folders = _lr_folders(setup.data_lr, scales)
        if len(scales) > 1 and setup.data_lr in folders.values():
            wanted = sorted(scales)
            raise EspanError(
                f"{setup.data_lr}: LR images have one scale, but the stages have "
                f"{', '.join(f'x{s}' for s in wanted)}; give a folder with the subfolders "
                f"{', '.join(f'X{s}' for s in wanted)}.  Without --data-lr, LR is made from HR"
            )
    # Checked before the training images are decoded, which takes minutes.
    validation: list[ValidationImage] = []
    if setup.validate is not None:
        lr = {} if setup.validate_lr is None else _lr_folders(setup.validate_lr, scales)
        validation = checked(from_folder(setup.validate, lr), scales)
    first = stages[0].scale
    further = {scale: folder for scale, folder in folders.items() if scale != first}
    if len(set(setup.data)) == 1:  # of several, `open_images` says that they cannot have LR images
        for scale, folder in further.items():
            check_lr(setup.data[0], folder, scale)
    largest_patch = max(stage.stage.hr_patch for stage in stages)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading images")
        images, skipped = open_images(
            setup.data,
            scale=first,
            smallest=-(-largest_patch // first),
            lr=folders.get(first),
            each=lambda done, total: bar.update(task, completed=done, total=total),
        )
    others: dict[int, list[TrainingImage]] = {}
    for scale, folder in further.items():
        others[scale], damaged = with_lr(images, folder, scale)
        skipped += damaged
    for file in skipped:
        console.print(f"skipped: {file.reason}", markup=False)
    if pack is not None:
        try:
            moved = iter(
                move_to_pack([*images, *(i for many in others.values() for i in many)], pack)
            )
            images = [next(moved) for _ in images]
            others = {scale: [next(moved) for _ in many] for scale, many in others.items()}
        except OSError as error:
            raise EspanError(
                f"{pack}: {error.strerror}.  Several processes share decoded images through this "
                "file: set TMPDIR to a folder with more space, or train on a pack (espan prepare)"
            ) from error

    held_out: set[str] = set()
    if setup.validate is None:
        held_out = _named(images, setup.hold_out) if setup.hold_out else _drawn(images)
        chosen = [image for image in images if image.name in held_out]
        given = {first: images, **others} if folders else {}
        validation = checked(from_photographs(chosen, given), scales)
    seen = {image.hr_sha256 for image in validation}
    copies = [i.name for i in images if i.name not in held_out and i.hr_sha256 in seen]
    left_out = held_out
    if copies:
        count, names = len(copies), some_names(copies)
        if setup.validate is None:
            left_out = held_out | set(copies)
            text = f"left out: {count} copies of images that are held out: {names}"
        else:
            text = f"warning: {count} of the images to validate on are also trained on: {names}"
        console.print(text, markup=False)
    training = [image for image in images if image.name not in left_out]
    if not training:
        raise EspanError(
            f"all {len(images)} images are held out for validation and none is left to train on; "
            "add images, or pass a folder of validation images (--validate)"
        )
    kept = {scale: [i for i in many if i.name not in left_out] for scale, many in others.items()}
    return Data(training, sorted(held_out), validation, kept)


def _lr_folders(folder: Path, scales: Mapping[int, str]) -> dict[int, Path]:
    """The folder of each scale.  Raises EspanError naming a stage whose scale is missing."""
    found: dict[int, Path] = {}
    for scale, stage in scales.items():
        try:
            found |= lr_folders(folder, [scale])
        except EspanError as error:
            raise EspanError(f"stage {stage}: {error}") from None
    return found


def _named(images: Sequence[TrainingImage], names: Sequence[str]) -> set[str]:
    """The images with these names, given with or without their folders."""
    by_name: dict[str, set[str]] = {}
    for image in images:
        for name in (image.name, PurePosixPath(image.name).name):
            by_name.setdefault(name, set()).add(image.name)
    if missing := sorted(set(names) - set(by_name)):
        raise EspanError(f"--hold-out: not among the images: {', '.join(missing)}")
    return set().union(*(by_name[name] for name in names))


def _drawn(images: Sequence[TrainingImage]) -> set[str]:
    """One image in twenty, at least 1 and at most 8: those with the smallest hashes.

    Runs with other seeds, or with more images, thus validate on the same ones where they can.
    """
    hashes = {image.hr_sha256: image.name for image in images}
    count = min(8, max(1, len(hashes) // 20))
    return {hashes[sha256] for sha256 in sorted(hashes)[:count]}
