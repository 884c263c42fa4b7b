"""Making a pack of folders of photographs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from espan.data.pack import write_pack
from espan.data.photographs import (
    Decoded,
    Skipped,
    decode_photographs,
    find_photographs,
    too_small,
)
from espan.errors import EspanError
from espan.files import refuse_inputs


@dataclass(frozen=True)
class Prepared:
    """The number of images in a pack and of duplicates among them, and the size of the file."""

    images: int
    duplicates: int
    size: int
    skipped: tuple[Skipped, ...]


def prepare(
    folders: Sequence[Path],
    output: Path,
    *,
    smallest: int,
    overwrite: bool = False,
    each: Callable[[int, int, int], None] = lambda done, total, size: None,
) -> Prepared:
    """Write a pack of all images in the folders and their subfolders, sorted within each folder.

    At most one image more than there are cores, or 17, is in memory at a time.

    Args:
        folders: folders of photographs.
        output: the file to write.
        smallest: pixels that both sides must have.
        overwrite: replace `output` if it exists.
        each: called with (files done, files, bytes of pixels so far).

    Raises:
        EspanError: a folder that does not exist or has no images, no usable image, or an output
            that exists, cannot be written or is one of the images.
        OSError: the disk is full, for example.  An existing `output` remains unchanged.
    """
    if not output.parent.is_dir():
        raise EspanError(f"{output}: the folder {output.parent} does not exist")
    if output.is_dir():
        raise EspanError(f"{output} is a folder; the name of the pack to write is expected")
    if output.exists() and not overwrite:
        raise EspanError(f"{output} exists; --overwrite replaces it")
    names = find_photographs(folders)
    refuse_inputs([output], names)
    skipped: list[Skipped] = []
    hashes: list[str] = []

    def usable(path: str, height: int, width: int) -> str | None:
        return too_small(path, height, width, smallest, "(--smallest)")

    def images() -> Iterator[Decoded]:
        size = 0
        for done, result in enumerate(decode_photographs(names, usable), 1):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                hashes.append(result.sha256)
                size += result.pixels.nbytes
                yield result
            each(done, len(names), size)
        if not hashes:
            raise EspanError(f"none of {len(names)} images can be used: {skipped[0].reason}")

    size = write_pack(output, images())
    return Prepared(len(hashes), len(hashes) - len(set(hashes)), size, tuple(skipped))
