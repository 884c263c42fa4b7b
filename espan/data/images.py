"""Training images: from folders, in memory, and from packs, on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from espan.data.downscale import context, downscale, weights
from espan.data.pack import Pack, write_pack
from espan.data.photographs import (
    Decoded,
    Skipped,
    decode_photographs,
    find_photographs,
    sha256_of,
    too_small,
)
from espan.errors import EspanError
from espan.imaging import imresize, pair_lr


@dataclass(frozen=True)
class Packed:
    """The pixels of an image in a pack, read from disk when they are used."""

    pack: Pack
    index: int


@dataclass(frozen=True, eq=False)
class TrainingImage:
    """An HR image and the LR image that it is to be restored from.

    Attributes:
        name: the path below its folder, with "/" as separator.
        scale: HR is this many times the size of LR.
        hr_size: height and width of HR in the file.
        sha256: of the HR pixels and, where LR is given, of its pixels.
        hr_pixels: HR, (*hr_size, 3) uint8.
        lr_pixels: LR, (height, width, 3) uint8; None: made as MATLAB's imresize does.
    """

    name: str
    scale: int
    hr_size: tuple[int, int]
    sha256: str
    hr_pixels: np.ndarray | Packed
    lr_pixels: np.ndarray | Packed | None = None

    @property
    def hr_sha256(self) -> str:
        """Of the HR pixels."""
        return self.sha256.partition("+")[0]

    @property
    def height(self) -> int:
        """Height of LR in pixels."""
        return self.hr_size[0] // self.scale

    @property
    def width(self) -> int:
        """Width of LR in pixels."""
        return self.hr_size[1] // self.scale

    @property
    def hr(self) -> np.ndarray:
        """(s*height, s*width, 3) uint8, cropped at the bottom and the right; a view."""
        return _read(self.hr_pixels)[: self.scale * self.height, : self.scale * self.width]

    @property
    def lr(self) -> np.ndarray:
        """(height, width, 3) uint8, computed each time if it is not given."""
        if self.lr_pixels is None:
            return imresize(self.hr, Fraction(1, self.scale))
        return _read(self.lr_pixels)

    def crop(self, y: int, x: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """LR (h, w, 3) at (y, x) and HR (s*h, s*w, 3), uint8; LR is that of the whole image."""
        s, hr = self.scale, self.hr
        large = hr[s * y : s * (y + height), s * x : s * (x + width)]
        if self.lr_pixels is not None:
            return self.lr[y : y + height, x : x + width], large
        rows, columns = weights(s, y, height), weights(s, x, width)
        pixels = context(hr, s, y, x, (height, width)).astype(rows.dtype)
        return downscale(pixels, rows, columns, s).astype(np.uint8), large


def image_in_memory(
    name: str, hr: np.ndarray, scale: int, *, sha256: str | None = None
) -> TrainingImage:
    """A training image of contiguous (H, W, 3) uint8 pixels, and their SHA-256 if it is known."""
    height, width = hr.shape[:2]
    digest = sha256_of(hr) if sha256 is None else sha256
    return TrainingImage(name, scale, (height, width), digest, hr)


def move_to_pack(images: Sequence[TrainingImage], path: Path) -> list[TrainingImage]:
    """Write all pixels that are in memory to a pack, and return images that read from there.

    The images can then be pickled: another process of the machine opens the same files.

    Raises OSError, naming `path`, if the disk is full.
    """
    # The same image at several scales has the same HR pixels, which are written once.
    names = {
        id(pixels): (image.name, pixels)
        for image in images
        for pixels in (image.hr_pixels, image.lr_pixels)
        if isinstance(pixels, np.ndarray)
    }
    write_pack(path, (Decoded(path, name, p, sha256_of(p)) for name, p in names.values()))
    pack = Pack(path)
    packed = {key: Packed(pack, index) for index, key in enumerate(names)}
    return [
        dataclasses.replace(
            image,
            hr_pixels=packed.get(id(image.hr_pixels), image.hr_pixels),
            lr_pixels=packed.get(id(image.lr_pixels), image.lr_pixels),
        )
        for image in images
    ]


def open_images(
    sources: Sequence[Path],
    *,
    scale: int,
    smallest: int,
    lr: Path | None = None,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[TrainingImage], list[Skipped]]:
    """The images of folders and packs, in the order of the sources.

    Packs remain on disk.  Folders are decoded into memory, 3 bytes per HR pixel.

    Args:
        sources: folders, searched with their subfolders, and packs (`espan prepare`).
        scale: HR is this many times the size of LR.
        smallest: LR pixels that both sides must have.
        lr: a folder with the LR images of the one source, found by `pair_lr`.
        each: called with (done, total) files of each folder.

    Returns:
        The images, and the files that are damaged, have an alpha channel or are too small.

    Raises:
        EspanError: a source that is neither folder nor pack, a folder without images, a pack that
            is damaged or of another version, no usable image at all, more in folders than half of
            the free memory, LR images that are missing, ambiguous or not HR / scale in size.
    """
    sources = list(dict.fromkeys(sources))
    if lr is not None and len(sources) != 1:
        raise EspanError(f"{lr} can hold the LR images of one source, not of {len(sources)}")
    for source in sources:
        if not source.exists():
            raise EspanError(f"{source} does not exist; a folder or a pack is expected")
    # Checked first, because decoding takes minutes.
    packs = {source: Pack(source) for source in sources if not source.is_dir()}
    found = {source: find_photographs([source]) for source in sources if source not in packs}
    names = [e.name for p in packs.values() for e in p.entries]
    names += [name for folder in found.values() for name in folder.values()]
    pairs = pair_lr(names, find_photographs([lr]), [scale]) if lr is not None else {}

    memory = _Memory(free_memory() // 2)
    images: list[TrainingImage] = []
    skipped: list[Skipped] = []

    def usable(path: str, height: int, width: int) -> str | None:
        why = f"for a patch of {smallest} at x{scale}"
        return too_small(path, height, width, smallest * scale, why)

    for source in sources:
        if source in packs:
            results = _packed(packs[source], scale, usable)
        else:
            results = _decoded(found[source], scale, usable, memory, each)
        for result in results:
            (images if isinstance(result, TrainingImage) else skipped).append(result)  # type: ignore[arg-type]
    if lr is not None:
        images = _with_lr(images, pairs, memory, skipped)
    if not images:
        raise EspanError(f"none of {len(skipped)} images can be used: {skipped[0].reason}")
    return images, skipped


def check_lr(source: Path, lr: Path, scale: int) -> None:
    """Raise EspanError unless each image of a folder or pack has an LR image in folder `lr`."""
    names = [e.name for e in Pack(source).entries] if source.is_file() else None
    pair_lr(names or find_photographs([source]).values(), find_photographs([lr]), [scale])


def with_lr(
    images: Sequence[TrainingImage], lr: Path, scale: int
) -> tuple[list[TrainingImage], list[Skipped]]:
    """Images that `open_images` returned, at another scale with the LR images of folder `lr`.

    Returns and raises as `open_images`.
    """
    pairs = pair_lr([image.name for image in images], find_photographs([lr]), [scale])
    at_scale = [dataclasses.replace(image, scale=scale, sha256=image.hr_sha256) for image in images]
    skipped: list[Skipped] = []
    return _with_lr(at_scale, pairs, _Memory(free_memory() // 2), skipped), skipped


def fingerprint(images: Sequence[TrainingImage]) -> str:
    """A hash of all names and pixels in order, by which changed data are detected."""
    listed = "".join(f"{image.name}\n{image.sha256}\n" for image in images)
    return hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()


def free_memory() -> int:
    """The available memory in bytes, or the limit of the container if that is lower."""
    import psutil  # a dependency of training only

    sizes = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes)


class _Memory:
    """Counts the bytes of decoded images."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    def add(self, pixels: np.ndarray, done: int, total: int) -> None:
        """Raise EspanError if file `done` of `total` exceeds the limit."""
        self.used += pixels.nbytes
        if self.used > self.limit:
            raise EspanError(
                f"the decoded images need more than {self.limit / 1e9:.1f} GB, half of the free "
                f"memory (reached at file {done} of {total}); write them to a pack, which is read "
                f"from disk as needed: `espan prepare DIR -o PACK`"
            )


def _packed(
    pack: Pack, scale: int, usable: Callable[[str, int, int], str | None]
) -> Iterator[TrainingImage | Skipped]:
    for index, entry in enumerate(pack.entries):
        if reason := usable(f"{pack.path}: {entry.name}", entry.height, entry.width):
            yield Skipped(pack.path / entry.name, reason)
            continue
        size = (entry.height, entry.width)
        yield TrainingImage(entry.name, scale, size, entry.sha256, Packed(pack, index))


def _decoded(
    names: Mapping[Path, str],
    scale: int,
    usable: Callable[[str, int, int], str | None],
    memory: _Memory,
    each: Callable[[int, int], None],
) -> Iterator[TrainingImage | Skipped]:
    for done, result in enumerate(decode_photographs(names, usable), 1):
        each(done, len(names))
        if isinstance(result, Skipped):
            yield result
        else:
            memory.add(result.pixels, done, len(names))
            yield image_in_memory(result.name, result.pixels, scale, sha256=result.sha256)


def _with_lr(
    images: Sequence[TrainingImage],
    pairs: Mapping[str, Path],
    memory: _Memory,
    skipped: list[Skipped],
) -> list[TrainingImage]:
    """The images with their LR pixels; damaged LR files are added to `skipped`."""
    by_path = {pairs[image.name]: image for image in images}
    decoded = decode_photographs({p: p.name for p in by_path}, lambda path, height, width: None)
    result: list[TrainingImage] = []
    wrong: list[str] = []
    for done, lr in enumerate(decoded, 1):
        if isinstance(lr, Skipped):
            skipped.append(lr)
            continue
        memory.add(lr.pixels, done, len(by_path))
        image = by_path[lr.path]
        (hr_height, hr_width), (height, width) = image.hr_size, lr.pixels.shape[:2]
        if image.hr_size != (image.scale * height, image.scale * width):
            wrong.append(f"{image.name} {hr_width}x{hr_height} and {lr.path} {width}x{height}")
            continue
        sha256 = f"{image.sha256}+{lr.sha256}"
        result.append(dataclasses.replace(image, sha256=sha256, lr_pixels=lr.pixels))
    if wrong:
        raise EspanError(
            f"HR must be exactly {images[0].scale} times the size of LR, but is not: "
            f"{some_names(wrong)}"
        )
    return result


def _read(pixels: np.ndarray | Packed) -> np.ndarray:
    return pixels if isinstance(pixels, np.ndarray) else pixels.pack.pixels(pixels.index)


def some_names(names: Sequence[str]) -> str:
    """The first four, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
