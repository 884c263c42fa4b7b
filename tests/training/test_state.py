"""Saves are complete or absent, and the previous one is kept."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from espan.errors import EspanError
from espan.training import run as module
from espan.training.run import Run, Setup


@pytest.fixture
def run(tiny, tmp_path: Path) -> Run:
    new = Run(tmp_path / "run", tiny(), Setup(data=(tmp_path,)))
    new.create()
    return new


def test_the_last_two_are_kept_and_the_newest_is_loaded(run: Run) -> None:
    assert run.load(print) is None
    for step in (5, 50, 1_000_000, 7):
        run.save(step, {"w": torch.full((3,), float(step)), "step": step})
    assert sorted(p.name for p in run.states.iterdir()) == ["000000050.state", "001000000.state"]
    assert run.load(print)["step"] == 1_000_000


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other"])
def test_a_damaged_save_falls_back_to_the_one_before(run: Run, damage: str) -> None:
    for step in (1, 2):
        run.save(step, {"step": step, "w": torch.rand(100)})
    newest = run.states / "000000002.state"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(
        {"cut": data[:-10], "flipped": data, "empty": b"", "other": b"PK" + data}[damage]
    )
    warnings: list[str] = []
    assert run.load(warnings.append)["step"] == 1
    assert len(warnings) == 1
    assert "000000002.state is damaged" in warnings[0]
    (run.states / "000000001.state").write_bytes(b"")
    with pytest.raises(EspanError, match="all 2 saves are damaged"):
        run.load(warnings.append)


def test_a_full_disk_leaves_the_older_saves(run: Run, monkeypatch) -> None:
    run.save(1, {"step": 1})

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.hashlib, "sha256", full)  # between making the file and filling it
    with pytest.raises(OSError, match="No space left"):
        run.save(2, {"step": 2})
    monkeypatch.undo()
    assert [p.name for p in run.states.iterdir()] == ["000000001.state"]
    assert run.load(print)["step"] == 1


def test_remains_of_a_killed_save_are_removed(run: Run) -> None:
    run.save(1, {"step": 1})
    (run.states / ".000000002.0123.part").write_bytes(b"half")
    assert run.load(print)["step"] == 1
    assert [p.name for p in run.states.iterdir()] == ["000000001.state"]
