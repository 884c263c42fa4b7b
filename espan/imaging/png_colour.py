"""The chunks of a PNG file that state its colour space, besides the ICC profile."""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

# Name and length of the chunks that are kept.
_LENGTHS = {b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"gAMA": 4, b"cHRM": 32}

# The contents that mean sRGB.  45455 is 1 / 2.2, the approximation that the PNG specification tells
# writers of sRGB to state.
_SRGB = {
    b"cICP": bytes([1, 13, 0, 1]),
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}

# The transfer functions of ITU-T H.273 for HDR.
_HDR = {16: "PQ", 18: "HLG"}

_HEADER_END = 8 + 12 + 13  # signature and IHDR; the colour space is stated before PLTE and IDAT


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the intact chunks of a PNG file before its pixels."""
    at = 8
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if name == b"IDAT":
            return
        content = data[at + 8 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] == _checksum(name, content):
            yield name, content
        at += 12 + length


def colour_chunks(found: Mapping[bytes, bytes]) -> bytes:
    """The chunks to copy, of those found, so that a PNG of the same pixels has the same colours.

    By the precedence of the PNG specification: cICP (with the HDR metadata mDCV and cLLI), else an
    ICC profile or the sRGB chunk (nothing to copy), else gAMA and cHRM.  Empty where they state
    sRGB.
    """
    if b"cICP" in found:
        wanted: tuple[bytes, ...] = (b"cICP", b"mDCV", b"cLLI")
    elif b"iCCP" in found or b"sRGB" in found:
        wanted = ()
    else:
        wanted = (b"gAMA", b"cHRM")
    kept = {k: found[k] for k in wanted if len(found.get(k, b"")) == _LENGTHS[k]}
    if all(_SRGB.get(name) == content for name, content in kept.items()):
        return b""
    return b"".join(
        struct.pack(">I", len(content)) + name + content + _checksum(name, content)
        for name, content in kept.items()
    )


def pillow_chunk_names(info: Mapping[Any, Any]) -> str:
    """For messages: the chunks of a PNG file, read by Pillow, that state another space than sRGB.

    Pillow puts gAMA and cHRM into an image's `info` as numbers.  It neither applies them nor writes
    them again; cICP it does not read.
    """
    if "icc_profile" in info or "srgb" in info:
        return ""
    stated = {
        b"gAMA": [info["gamma"]] if "gamma" in info else [],
        b"cHRM": info.get("chromaticity", []),
    }
    return ", ".join(
        name.decode()
        for name, values in stated.items()
        if values
        and struct.pack(f">{len(values)}I", *(round(1e5 * x) for x in values)) != _SRGB[name]
    )


def with_colour_chunks(data: bytes, chunks: bytes) -> bytes:
    """A PNG file with these chunks inserted."""
    return data[:_HEADER_END] + chunks + data[_HEADER_END:]


def chunk_names(chunks: bytes) -> str:
    """For messages: "gAMA, cHRM"."""
    return ", ".join(name.decode() for name, _ in png_chunks(bytes(8) + chunks))


def hdr_transfer(chunks: bytes) -> str | None:
    """PQ or HLG, if the cICP chunk states one of them."""
    return _HDR.get(chunks[9]) if chunks[4:8] == b"cICP" else None


def _checksum(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(name + content))
