"""Saves of a training run: whole, checked, and always with the one before."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from espan.errors import EspanError
from espan.files import atomic_write

_MAGIC = b"espan training state 1\n"
_KEPT = 2  # a damaged last save falls back to the one before it


def save_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after `step` steps of the run, and remove all but the last two.

    Raises OSError if it cannot be written, e.g. to a full disk; older saves then stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    with atomic_write(folder / f"{step:09d}.state") as path, path.open("wb") as file:
        file.write(_MAGIC + hashlib.sha256(body).digest())
        file.write(body)
    for old in _saves(folder)[_KEPT:]:
        old.unlink()


def load_state(folder: Path, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """The newest state that is whole, on the CPU; None if nothing was saved yet.

    `tell` gets a sentence on each save that is damaged.

    Raises EspanError if all saves are damaged.
    """
    for part in folder.glob(".*.part"):  # of a save that was killed
        part.unlink()
    saves = _saves(folder)
    for path in saves:
        data = path.read_bytes()
        head = len(_MAGIC) + 32
        if data[:head] == _MAGIC + hashlib.sha256(data[head:]).digest():
            return torch.load(io.BytesIO(data[head:]), map_location="cpu", weights_only=True)
        tell(f"{path} is damaged; going on from the save before it")
    if saves:
        raise EspanError(f"{folder}: all {len(saves)} saves are damaged")
    return None


def _saves(folder: Path) -> list[Path]:
    """The newest first."""
    return sorted(folder.glob("*.state"), reverse=True)
