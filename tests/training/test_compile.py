"""Compiled steps equal eager ones, but for rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from rich.console import Console

from espan.errors import EspanError
from espan.training import steps as steps_module
from espan.training.prepared import prepare
from espan.training.run import Run, Setup, reopen
from espan.training.train import resume, train

STAGES = (
    {"change": {"teacher": 1}, "loss": {"pixel": "l2", "hf": 1.0, "dct": 0.001}},
    {"name": "two", "change": {"keep": "teacher", "scale": 3}},
)


@pytest.fixture
def setup(photos: Path) -> Setup:
    return Setup(data=(photos,), hold_out=("1.png", "3.png"), cpu=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp64", 1e-6), ("fp32", 1e-4), ("bf16", 3e-3)]
)
def test_compiled_steps_equal_eager_ones(
    tiny, setup: Setup, tmp_path: Path, monkeypatch, precision: str, tolerance: float
) -> None:
    """The loss is computed in fp32; AdamW divides small numbers by small numbers."""
    setup = replace(setup, precision=precision, accumulate=2)
    compiled, inner = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or inner(f))
    for name, on in (("eager", False), ("compiled", True)):
        train(
            tmp_path / name, tiny(*STAGES), replace(setup, compile=on), console=Console(quiet=True)
        )
    assert len(compiled) == len(STAGES)
    one, other = (reopen(tmp_path / name).load(print) for name in ("eager", "compiled"))
    assert one is not None
    assert other is not None
    for kind in ("network", "average"):
        for name, value in one[kind].items():
            torch.testing.assert_close(other[kind][name], value, rtol=tolerance, atol=tolerance)


def test_it_is_kept_when_resuming(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or f)
    inner, calls = steps_module.update_average, iter(range(100))

    def stopping(*args: object, **options: object) -> None:
        if next(calls) == 5:
            raise KeyboardInterrupt
        inner(*args, **options)

    monkeypatch.setattr(steps_module, "update_average", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", tiny(), replace(setup, compile=True), console=Console(quiet=True))
    resume(tmp_path / "run", console=Console(quiet=True))
    assert len(compiled) == 2


def test_it_is_refused_on_one_gpu(tiny, setup: Setup, tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path / "run", tiny(), replace(setup, compile=True))
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    with pytest.raises(EspanError, match="--compile is for a CPU and for several processes"):
        prepare(run, new=True, accelerator=Accelerator(cpu=True), console=Console(quiet=True))
