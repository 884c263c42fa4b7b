"""Writing files: whole or not at all, and never over an input; and standard JSON."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from espan.errors import EspanError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the path of a temporary file beside `path`; put it in place if the block succeeds.

    On any failure, including an interrupt, the temporary file is removed, and an existing file at
    `path` is left unchanged.  OSErrors, for example if the disk is full, name `path`.
    """
    target = Path(path)
    name = f".{target.stem[:40]}.{secrets.token_hex(6)}.part"
    temporary = target.with_name(name)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # minus the umask
        yield temporary
        with temporary.open("r+b") as written:  # Windows flushes only what is open for writing
            os.fsync(written.fileno())
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):  # there may be none
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(target)
        raise


def refuse_inputs(
    outputs: Iterable[Path],
    inputs: Iterable[Path],
    *,
    instead: str = "write to another name or folder",
) -> None:
    """Raise EspanError if a file to be written is one of the inputs, under any path or link."""
    known = {identity: path for path in inputs if (identity := file_identity(path)) is not None}
    for output in outputs:
        # By the real path: "new/../a.png" is a.png once the folder "new" has been made.
        identity = file_identity(Path(os.path.realpath(output)))
        if identity is not None and identity in known:
            same = "" if known[identity] == output else f" ({known[identity]})"
            raise EspanError(
                f"{output} is an input of this command{same} and is not replaced; {instead}"
            )


def file_identity(path: Path) -> tuple[int, int] | None:
    """An identity that all links to a file and spellings of its path share; None if no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as ASCII JSON: any file name is preserved, and NaN and infinity become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
