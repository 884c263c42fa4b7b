"""Saves: whole or not at all, and always with the one before."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from espan.errors import EspanError
from espan.training import state as module
from espan.training.state import load_state, save_state


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    assert load_state(tmp_path, print) is None
    for step in (5, 50, 1_000_000, 7):
        save_state(tmp_path, step, {"w": torch.full((3,), float(step)), "step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000050.state", "001000000.state"]
    assert load_state(tmp_path, print)["step"] == 1_000_000


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_save_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    for step in (1, 2):
        save_state(tmp_path, step, {"step": step, "w": torch.rand(100)})
    newest = tmp_path / "000000002.state"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(
        {"cut": data[:-10], "flipped": data, "empty": b"", "other": b"PK" + data}[damage]
    )
    said: list[str] = []
    assert load_state(tmp_path, said.append)["step"] == 1
    assert len(said) == 1
    assert "000000002.state is damaged" in said[0]
    (tmp_path / "000000001.state").write_bytes(b"")
    with pytest.raises(EspanError, match="all 2 saves are damaged"):
        load_state(tmp_path, said.append)


def test_a_full_disk_leaves_the_older_saves(tmp_path: Path, monkeypatch) -> None:
    save_state(tmp_path, 1, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.hashlib, "sha256", full)  # between making the file and filling it
    with pytest.raises(OSError, match="No space left"):
        save_state(tmp_path, 2, {"step": 2})
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["000000001.state"]
    assert load_state(tmp_path, print)["step"] == 1


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    save_state(tmp_path, 1, {"step": 1})
    (tmp_path / ".000000002.0123.part").write_bytes(b"half")
    assert load_state(tmp_path, print)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["000000001.state"]
