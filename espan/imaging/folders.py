"""Find the images in folders, and the LR image of each HR image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from espan.errors import EspanError
from espan.imaging.image_read import is_image_path


class Found(NamedTuple):
    """The images of a folder (path -> name), and the errors of subfolders that cannot be read.

    A name is the path below the folder, with "/" as separator.
    """

    images: dict[Path, str]
    unreadable: list[OSError]


def find_images(folder: Path, *, subfolders: bool = True, leave_out: Path | None = None) -> Found:
    """Find the image files in a folder, by their suffixes, sorted by path.

    Hidden files and folders (".name") are left out; macOS's "._name.jpg", for instance, is not an
    image.  Symbolic links are followed; a folder that is reached by several paths is searched once.

    Args:
        folder: the folder to search.
        subfolders: search these too.
        leave_out: a folder that is not searched, unless it is `folder` itself.

    Raises EspanError if `folder` is not a folder, or if there are no images although all folders
    could be read.
    """
    if not folder.is_dir():
        raise EspanError(f"{folder} is not a folder; a folder of images is expected")
    images: list[Path] = []
    unreadable: list[OSError] = []
    searched: set[tuple[int, int]] = set()
    if leave_out is not None and leave_out.is_dir():
        searched = {_identity(leave_out)} - {_identity(folder)}
    # Also by its path: under torchrun another process may create it during this search.
    left_out = leave_out and os.path.realpath(leave_out)
    # Links come last, so that a folder below `folder` is found by its path rather than by a link.
    folders = [folder]
    links: list[Path] = []
    while folders or links:
        current = folders.pop() if folders else links.pop(0)
        try:
            if (identity := _identity(current)) in searched:
                continue
            searched.add(identity)
            with os.scandir(current) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    path = current / entry.name
                    if _is_dir(entry):
                        if os.path.realpath(path) == left_out:
                            continue
                        (links if entry.is_symlink() else folders).append(path)
                    elif is_image_path(path):
                        images.append(path)
        except OSError as error:
            unreadable.append(error)
        links.sort()
        if not subfolders:
            break
    if not images and not unreadable:
        raise EspanError(
            f"no images in {folder}{' or its subfolders' if subfolders else ''}: no file name ends "
            "in .png, .jpg or another suffix that espan knows"
        )
    unreadable.sort(key=lambda error: str(error.filename))
    return Found({p: p.relative_to(folder).as_posix() for p in sorted(images)}, unreadable)


def pair_lr(hr: Iterable[str], lr: Mapping[Path, str], scales: Iterable[int]) -> dict[str, Path]:
    """Find the LR image of each HR image: "a/b.png" or "a/bx4.png" for "a/b.jpg".

    Args:
        hr: names of the HR images, as `find_images` returns them.
        lr: LR images, as `find_images` returns them.
        scales: the numbers that may follow "x".

    Raises EspanError if an HR image has no LR image or more than one, or shares it with another.
    """
    names = list(hr)
    stems = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    by_stem: dict[str, list[Path]] = {}
    for path, name in lr.items():
        by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(path)
    # "ax4.png" is the LR image of an HR image "ax4.png", not of "a.png" beside it.
    own = set(stems.values())
    found: dict[str, Path] = {}
    users: dict[Path, str] = {}
    wrong: list[str] = []
    for name in names:
        wanted = [stems[name], *(s for x in scales if (s := f"{stems[name]}x{x}") not in own)]
        candidates = [path for stem in wanted for path in by_stem.get(stem, [])]
        if len(candidates) != 1:
            has = " and ".join(str(path) for path in candidates[:3]) or "none"
            wrong.append(f"{name} has {has}")
        elif candidates[0] in users:
            wrong.append(f"{users[candidates[0]]} and {name} share {candidates[0]}")
        else:
            found[name] = candidates[0]
            users[candidates[0]] = name
    if wrong:
        suffixes = " or ".join(f"x{scale}" for scale in scales)
        raise EspanError(
            "each HR image needs one LR image, with the same name (the suffix may differ) or with "
            f"{suffixes} after it: {'; '.join(wrong[:4])}"
            + (f"; and {len(wrong) - 4} more" if len(wrong) > 4 else "")
        )
    return found


def lr_folders(folder: Path, scales: Iterable[int]) -> dict[int, Path]:
    """The folder of the LR images of each scale, as in DIV2K: the subfolders X2, X3, ... or x2, ...

    Without such subfolders, `folder` itself for every scale.

    Raises EspanError if there are such subfolders, but not exactly one for each scale.
    """
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and (match := re.fullmatch(r"[Xx]([1-9]\d*)", path.name)):
            found.setdefault(int(match[1]), []).append(path)
    if not found:
        return dict.fromkeys(scales, folder)
    chosen = {}
    for scale in scales:
        paths = found.get(scale, [])
        if len(paths) != 1:
            has = ", ".join(path.name for many in found.values() for path in many)
            raise EspanError(
                f"{folder} has the folders {has}; one folder X{scale} with the LR images of "
                f"x{scale} is expected"
            )
        chosen[scale] = paths[0]
    return chosen


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # taken for a file, so that reading it reports why
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino
