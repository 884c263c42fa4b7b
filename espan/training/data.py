"""The images of a run: those to train on, and those to validate on."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress

from espan.data import (
    TrainingImage,
    check_lr,
    fingerprint,
    move_to_pack,
    open_images,
    with_lr,
)
from espan.data.degrade import degraded
from espan.data.degrade_table import DegradeTable
from espan.data.photographs import sha256_of
from espan.errors import EspanError, RangeWarning
from espan.evaluation.evaluate import Score, find_pairs, read_rgb, score
from espan.evaluation.metrics import SSIM_WINDOW
from espan.imaging import imresize, lr_folders, modcrop
from espan.models import Network
from espan.training.processes import run_once
from espan.training.run import Setup
from espan.training.stages import StageRun
from espan.upscaling import Upscaler

HELD_OUT_CROP = 512  # HR pixels
DEGRADED_SEED = 0


@dataclass(frozen=True)
class ValidationImage:
    """An image to validate on, read from disk each time it is used.

    Attributes:
        hr: a file, or a held-out photograph, of which the central 512 x 512 pixels are used.
        lr: its LR image for each scale: a file, or the photograph with its given LR pixels; empty:
            LR is made from HR.
        index: position among the images, the index of its degradation.
        sha256: of the HR pixels and, where LR is given, of its pixels; set by `_checked`.
    """

    hr: Path | TrainingImage
    lr: Mapping[int, Path | TrainingImage] = field(default_factory=dict)
    index: int = 0
    sha256: str = ""

    @property
    def name(self) -> str:
        return str(self.hr) if isinstance(self.hr, Path) else self.hr.name

    def read_hr(self) -> np.ndarray:
        """(H, W, 3) uint8."""
        if isinstance(self.hr, Path):
            return read_rgb(self.hr)
        y, x = self._corner(self.hr)
        return self.hr.hr[y : y + HELD_OUT_CROP, x : x + HELD_OUT_CROP]

    def read_lr(self, scale: int) -> np.ndarray | None:
        """The given LR image, (h, w, 3) uint8."""
        if not self.lr:
            return None
        given = self.lr[scale]
        if isinstance(given, Path):
            return read_rgb(given)
        y, x = (n // scale for n in self._corner(given))
        size = HELD_OUT_CROP // scale
        return given.lr[y : y + size, x : x + size]

    def _corner(self, image: TrainingImage) -> tuple[int, int]:
        """Where the central pixels of a photograph begin: where pixels of its LR images begin."""
        step = math.lcm(*self.lr)
        y, x = (max(0, n - HELD_OUT_CROP) // 2 // step * step for n in image.hr_size)
        return y, x

    def pair(
        self, scale: int, degrade: DegradeTable | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """LR and HR, cropped to a multiple of the scale.

        LR that is not given is degraded, always in the same way, or made as MATLAB's imresize does.
        """
        hr, lr = self.read_hr(), self.read_lr(scale)
        self.check(hr, lr, scale)
        hr = modcrop(hr, scale)
        if lr is None and degrade is not None:
            lr = degraded(hr, degrade, scale, seed=DEGRADED_SEED, index=self.index)
        return imresize(hr, Fraction(1, scale)) if lr is None else lr, hr

    def check(self, hr: np.ndarray, lr: np.ndarray | None, scale: int) -> None:
        """Raise EspanError if the images that were read cannot be used at this scale."""
        height, width = (n // scale for n in hr.shape[:2])
        smallest = SSIM_WINDOW + 2 * scale  # SSIM's window, and the border that is cut off
        if scale * min(height, width) < smallest:
            raise EspanError(
                f"validation image {self.name} has {hr.shape[1]}x{hr.shape[0]} pixels; x{scale} "
                f"needs {math.ceil(smallest / scale) * scale} on both sides.  Validate on larger "
                "images"
            )
        if lr is not None and lr.shape[:2] != (height, width):
            raise EspanError(
                f"validation image {self.lr[scale]} is {lr.shape[1]}x{lr.shape[0]}; x{scale} needs "
                f"{width}x{height}, the size of {self.name} divided by {scale}.  Without "
                "--validate-lr, LR images are made from HR at the scale of each stage"
            )


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


def validate(
    network: Network,
    images: Sequence[ValidationImage],
    *,
    degrade: DegradeTable | None = None,
    device: torch.device,
) -> list[Score]:
    """PSNR in dB and SSIM of a plain network, run by `espan.fused`."""
    upscaler = Upscaler(network, device=device)
    scores = []
    for image in images:
        lr, hr = image.pair(network.scale, degrade)
        with warnings.catch_warnings():
            # Expected of a network at the start of its training.
            warnings.simplefilter("ignore", RangeWarning)
            sr = upscaler(lr)
        scores.append(score(image.name, sr, hr, border=network.scale))
    return scores


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
        validation = _checked(_validation(setup.validate, setup.validate_lr, scales), scales)
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
        validation = _checked(_held_out(chosen, given), scales)
    seen = {_of_hr(image.sha256) for image in validation}
    copies = [i for i in images if i.name not in held_out and _of_hr(i.sha256) in seen]
    left_out = set(held_out)
    if copies and setup.validate is None:
        left_out |= {image.name for image in copies}
        console.print(
            f"left out: {len(copies)} copies of images that are held out: {_some(copies)}",
            markup=False,
        )
    elif copies:
        console.print(
            f"warning: {len(copies)} of the images to validate on are also trained on: "
            f"{_some(copies)}",
            markup=False,
        )
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


def _validation(hr: Path, lr: Path | None, scales: Mapping[int, str]) -> list[ValidationImage]:
    """The images of a folder, each with its LR image for every scale if there is a folder `lr`."""
    if lr is None:
        pairs = find_pairs(hr, None, [])
        return [ValidationImage(pair.hr, index=i) for i, pair in enumerate(pairs)]
    files: dict[Path, dict[int, Path]] = {}
    for scale, folder in _lr_folders(lr, scales).items():
        for pair in find_pairs(hr, folder, [scale]):
            assert pair.lr is not None
            files.setdefault(pair.hr, {})[scale] = pair.lr
    return [ValidationImage(path, found) for path, found in files.items()]


def _held_out(
    chosen: Sequence[TrainingImage], given: Mapping[int, Sequence[TrainingImage]]
) -> list[ValidationImage]:
    """Photographs to validate on, with the LR images of each scale where they are given."""
    by_name = {scale: {image.name: image for image in many} for scale, many in given.items()}
    for scale, images in by_name.items():
        if missing := [image for image in chosen if image.name not in images]:
            raise EspanError(
                f"to validate on {_some(missing)}, their LR images at x{scale} are needed, but "
                "they could not be used; hold out other images"
            )
    return [
        ValidationImage(image, {scale: images[image.name] for scale, images in by_name.items()}, i)
        for i, image in enumerate(chosen)
    ]


def _checked(
    validation: Sequence[ValidationImage], scales: Mapping[int, str]
) -> list[ValidationImage]:
    """The images with their hashes.

    Raises EspanError if one cannot be used in a stage, given the stage's name by scale.
    """
    checked = []
    for image in validation:
        hr = image.read_hr()
        hashes = [sha256_of(hr) if isinstance(image.hr, Path) else _of_hr(image.hr.sha256)]
        for scale, stage in scales.items():
            try:
                lr = image.read_lr(scale)
                image.check(hr, lr, scale)
            except EspanError as error:
                raise EspanError(f"stage {stage}: {error}") from None
            hashes += [] if lr is None else [sha256_of(lr)]
        checked.append(dataclasses.replace(image, sha256="+".join(hashes)))
    return checked


def _of_hr(sha256: str) -> str:
    """The part of an image's hash that is that of its HR pixels."""
    return sha256.partition("+")[0]


def _some(images: Sequence[TrainingImage]) -> str:
    names = [image.name for image in images]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


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
    hashes = {_of_hr(image.sha256): image.name for image in images}
    count = min(8, max(1, len(hashes) // 20))
    return {hashes[sha256] for sha256 in sorted(hashes)[:count]}
