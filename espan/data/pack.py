"""A pack: the pixels of many photographs in one file, which is mapped into memory.

    header   64 bytes, little-endian: magic (8), version (u32), zero (u32), bytes of pixels (u64),
             bytes of the index (u64), SHA-256 of the index (32)
    pixels   uint8 RGB, row by row, one image after the other without gaps
    index    JSON, ASCII: [name, height, width, SHA-256 of its pixels] of each image, in order

The same images give the same bytes.
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

MAGIC = b"\x89ESPAN\r\n"  # not text; damaged by transfers in text mode, and so detects them
VERSION = 1
_HEADER = struct.Struct("<8sIIQQ32s")


@dataclass(frozen=True)
class Entry:
    """An image in the index; `offset` is in bytes from the start of the file."""

    name: str
    height: int
    width: int
    sha256: str
    offset: int


class Pack:
    """An open pack.  Pixels are read from disk when they are used.

    The file must not be truncated while it is in use: the system kills a process that reads beyond
    the end of a mapped file.

    Raises EspanError if the file is not a pack, is of another version, is truncated, or has
    a damaged index.  The pixels of an image are verified when it is first used, because hashing
    takes 0.7 s per gigabyte.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.entries, self._size = _read_index(path, file)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._file = os.dup(file.fileno())
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._stamp = self._now()
        self._verified = bytearray(len(self.entries))

    def __reduce__(self) -> tuple[type[Pack], tuple[Path]]:
        """Pickle the path only: another process opens the file itself."""
        return Pack, (self.path,)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def pixels(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, 3) uint8: a read-only view of the file.

        Raises EspanError if the file has changed since it was opened, or if the pixels do not match
        their hash, which is checked once.
        """
        if self._now() != self._stamp:
            raise EspanError(f"{self.path} was changed while it was in use")
        entry = self.entries[index]
        end = entry.offset + entry.height * entry.width * 3
        pixels = self._bytes[entry.offset : end].reshape(entry.height, entry.width, 3)
        if not self._verified[index]:
            if sha256_of(pixels) != entry.sha256:
                raise EspanError(
                    f"{self.path} is damaged: the pixels of {entry.name} do not match their hash; "
                    f"`espan prepare --check` lists all damaged images"
                )
            self._verified[index] = 1
        return pixels

    def damaged(self, each: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """The names of the images whose pixels do not match their hash.  Reads the whole file.

        `each` is called with (done, total) bytes.
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
        """Size and modification time of the file (1 microsecond)."""
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns


def write_pack(path: Path, images: Iterable[Decoded]) -> int:
    """Write a pack, one image at a time, whole or not at all; returns its size in bytes.

    Raises OSError, naming `path`, if the disk is full, for example.
    """
    index, size = [], 0
    with atomic_write(path) as temporary, temporary.open("r+b") as file:
        file.write(bytes(_HEADER.size))
        for image in images:
            file.write(image.pixels.data)
            index.append([image.name, *image.pixels.shape[:2], image.sha256])
            size += image.pixels.nbytes
        data = json.dumps(index, separators=(",", ":"), allow_nan=False).encode()
        file.write(data)
        file.seek(0)
        digest = hashlib.sha256(data).digest()
        file.write(_HEADER.pack(MAGIC, VERSION, 0, size, len(data), digest))
    return _HEADER.size + size + len(data)


def _read_index(path: Path, file: BinaryIO) -> tuple[list[Entry], int]:
    """The entries, and the number of bytes of all pixels."""
    header = file.read(_HEADER.size)
    if not header.startswith(MAGIC):
        raise EspanError(f"{path} is not a pack; `espan prepare DIR -o PACK` makes one")
    if len(header) < _HEADER.size:
        raise EspanError(f"{path} is truncated: {len(header)} bytes, less than a header")
    _, version, _, size, length, digest = _HEADER.unpack(header)
    if version != VERSION:
        raise EspanError(
            f"{path} is a pack of version {version}, and this espan reads version {VERSION}; "
            f"update espan, or recreate the pack with `espan prepare`"
        )
    found, expected = os.fstat(file.fileno()).st_size, _HEADER.size + size + length
    if found != expected:
        raise EspanError(f"{path} is damaged: it has {found} bytes, and its header says {expected}")
    file.seek(_HEADER.size + size)
    data = file.read(length)
    if hashlib.sha256(data).digest() != digest:
        raise EspanError(f"{path} is damaged: its index does not match its hash")
    entries, offset = [], _HEADER.size
    for name, height, width, sha256 in json.loads(data):
        entries.append(Entry(name, height, width, sha256, offset))
        offset += height * width * 3
    return entries, size
