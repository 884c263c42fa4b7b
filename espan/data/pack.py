"""A pack: the pixels of many photographs in one file that is mapped into memory.

    header   64 bytes, little-endian: magic (8), version (u32), zero (u32), bytes of pixels (u64),
             bytes of the index (u64), SHA-256 of the index (32)
    pixels   uint8 RGB, row by row, one image after the other without gaps
    index    JSON, ASCII: [name, height, width, SHA-256 of its pixels] of each image, in order

Nothing in it depends on where or when it was made.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from espan.data.photographs import Decoded, sha256_of
from espan.errors import EspanError
from espan.files import atomic_write

MAGIC = b"\x89ESPAN\r\n"  # no text file begins so, and a transfer as text spoils it
VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s")


@dataclass(frozen=True)
class Entry:
    """What the index says of an image; `offset` counts bytes from the start of the file."""

    name: str
    height: int
    width: int
    sha256: str
    offset: int


class Pack:
    """A pack that is open.  Its pixels are read from disk when they are used, not before.

    It must not be cut short while it is in use: the system ends a process that reads what is gone.

    Raises EspanError if the file is no pack, of a newer version, cut short, or its index damaged.
    What the index promises of the pixels is checked when each image is first used, since a hash of
    everything takes 0.7 s for a gigabyte.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.entries, self._size = _read_index(path, file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = os.dup(file.fileno())
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._stamp = self._now()
        self._proven = bytearray(len(self.entries))

    def __reduce__(self) -> tuple[type[Pack], tuple[Path]]:
        """Pickled as its path; another process opens the file itself."""
        return Pack, (self.path,)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def pixels(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, 3) uint8: a view of the file that cannot be written to.

        Raises EspanError if the file was written to since it was opened, or if the pixels are not
        those that were packed, which is looked at once.
        """
        if self._now() != self._stamp:
            raise EspanError(
                f"{self.path} was changed while it was in use; a pack is never changed"
            )
        entry = self.entries[index]
        end = entry.offset + entry.height * entry.width * 3
        pixels = self._bytes[entry.offset : end].reshape(entry.height, entry.width, 3)
        if not self._proven[index]:
            if sha256_of(pixels) != entry.sha256:
                raise EspanError(
                    f"{self.path} is damaged: the pixels of {entry.name} are not those that were "
                    f"packed; `espan prepare --check` lists all that are damaged"
                )
            self._proven[index] = 1
        return pixels

    def damaged(self, each: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """The names of the images whose pixels are not those that were packed: reads everything.

        `each(done, total)` is told of bytes.
        """

        def is_damaged(index: int) -> bool:
            try:
                self.pixels(index)
            except EspanError:
                return True
            return False

        names, done = [], 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for entry, bad in zip(
                self.entries, pool.map(is_damaged, range(len(self.entries))), strict=True
            ):
                if bad:
                    names.append(entry.name)
                done += entry.height * entry.width * 3
                each(done, self._size)
        return names

    def _now(self) -> tuple[int, int]:
        """What changes when the file is written to: its size and the time, 1 microsecond to ask."""
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns


def write_pack(path: Path, images: Iterable[Decoded]) -> int:
    """Write a pack, whole or not at all, one image at a time; returns its size in bytes.

    Raises OSError, naming `path`, if the disk is full, for example.
    """
    index, size = [], 0
    with atomic_write(path) as temporary, temporary.open("r+b") as file:
        file.write(bytes(_HEADER.size))
        for image in images:
            file.write(image.pixels.data)
            index.append([image.name, *image.pixels.shape[:2], image.sha256])
            size += image.pixels.nbytes
        data = json.dumps(index, separators=(",", ":")).encode()
        file.write(data)
        file.seek(0)
        digest = hashlib.sha256(data).digest()
        file.write(_HEADER.pack(MAGIC, VERSION, 0, size, len(data), digest))
    return _HEADER.size + size + len(data)


def _read_index(path: Path, file: BinaryIO) -> tuple[list[Entry], int]:
    """The entries, and the bytes of all pixels."""
    header = file.read(_HEADER.size)
    if not header.startswith(MAGIC):
        raise EspanError(f"{path} is not a pack; `espan prepare DIR -o PACK` makes one")
    if len(header) < _HEADER.size:
        raise EspanError(f"{path} is cut short: {len(header)} bytes, not even a whole header")
    _, version, _, size, length, digest = _HEADER.unpack(header)
    if version != VERSION:
        raise EspanError(
            f"{path} is a pack of version {version}; this espan reads version {VERSION}: "
            f"a newer espan reads it, or `espan prepare` makes it again"
        )
    found, expected = os.fstat(file.fileno()).st_size, _HEADER.size + size + length
    if found != expected:
        raise EspanError(f"{path} has {found} bytes, and its header tells of {expected}: damaged")
    file.seek(_HEADER.size + size)
    data = file.read(length)
    if hashlib.sha256(data).digest() != digest:
        raise EspanError(f"{path} is damaged: its index is not the one that was written")
    entries, offset = [], _HEADER.size
    for name, height, width, sha256 in json.loads(data):
        entries.append(Entry(name, height, width, sha256, offset))
        offset += height * width * 3
    return entries, size
