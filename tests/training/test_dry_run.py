"""A dry run checks what a run checks, times every stage, and writes nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from espan.errors import EspanError
from espan.training import dry_run as module
from espan.training import steps as steps_module
from espan.training.dry_run import Estimate, dry_run
from espan.training.run import Setup
from espan.training.steps import Trainer

STAGES = (
    {"change": {"teacher": 1}, "iterations": 9, "repeats": 2},
    {"name": "two", "change": {"keep": "teacher", "scale": 4}, "warm_up": 3, "iterations": 12},
)


@pytest.fixture(autouse=True)
def _fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.0)


@pytest.fixture
def setup(photos: Path) -> Setup:
    return Setup(data=(photos,), hold_out=("1.png", "3.png"), cpu=True)


def recorded() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp64"])
def test_every_stage_is_timed_and_nothing_is_written(
    tiny, setup: Setup, tmp_path: Path, monkeypatch, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    console = recorded()
    setup = replace(setup, precision=precision, accumulate=2)
    estimates = dry_run(tiny(*STAGES), setup, folder=Path("run"), console=console)
    assert list(tmp_path.iterdir()) == []
    assert [e.stage.name for e in estimates] == ["one 1/2", "two"]
    text = console.file.getvalue()
    assert "one: x2, 8 channels, blocks of 3-3, teacher of 3 more; 5,452 parameters" in text
    assert "two: x4, 8 channels, blocks of 3-3-3; " in text
    assert "in training (grep [2, 0])" in text
    for words in ("4 x 12x12", "2 x 9", "4 x 6x6", "30 steps in about"):
        assert words in text
    for estimate in estimates:
        assert 0 < estimate.step < 10
        assert 0 < estimate.validation < 10
        assert 0 <= estimate.memory < 2e9
        deployed, trained = estimate.parameters
        assert deployed < trained


def test_the_time_of_a_stage(tiny, setup: Setup) -> None:
    (estimate, _) = dry_run(tiny(*STAGES), setup, console=Console(quiet=True))
    estimate = replace(estimate, step=2.0, validation=5.0, validate_every=4)
    # Validated before the first step and after 4, 8 and 9 steps.
    assert estimate.seconds == 2 * (9 * 2.0 + 4 * 5.0)
    assert isinstance(estimate, Estimate)


def test_the_time_and_memory_of_a_step(tiny, setup: Setup, monkeypatch) -> None:
    inner = steps_module.loss_of

    def slow(*arguments: object) -> torch.Tensor:
        large = torch.ones(60_000_000)
        time.sleep(0.1)
        del large
        return inner(*arguments)

    monkeypatch.setattr(steps_module, "loss_of", slow)
    (estimate,) = dry_run(tiny(), setup, console=Console(quiet=True))
    assert estimate.step > 0.1
    assert estimate.memory > 0.9 * 240e6


def test_the_step_for_a_gpu(tiny, setup: Setup, monkeypatch) -> None:
    def steps(self: Trainer, crops: object) -> Iterator[steps_module.Step]:
        return self._captured_steps(crops, capture=False)

    monkeypatch.setattr(Trainer, "steps", steps)
    estimates = dry_run(tiny(*STAGES), setup, console=Console(quiet=True))
    assert all(estimate.step > 0 for estimate in estimates)


def test_what_a_run_checks_is_checked(tiny, setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").touch()
    cases = [
        (tiny(), {}, tmp_path / "full", "full is not empty"),
        (tiny({"batch": 3}), {"accumulate": 2}, None, "stage one: batch 3 is not a multiple of 2"),
        (tiny({"hr_patch": 66}), {}, None, "too few"),
        (tiny(), {"weights": "espan_x4"}, None, "another architecture"),
    ]
    for experiment, changes, folder, message in cases:
        with pytest.raises(EspanError, match=message):
            dry_run(experiment, replace(setup, **changes), folder=folder)


def test_out_of_memory_is_named_with_its_remedy(tiny, setup: Setup, monkeypatch) -> None:
    def loss_of(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(steps_module, "loss_of", loss_of)
    with pytest.raises(EspanError, match=r"stage one: cpu is out of memory.  --accumulate 2 "):
        dry_run(tiny(), setup, console=Console(quiet=True))


@pytest.mark.slow
def test_two_processes_print_one_table(photos: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "tiny.toml"
    experiment.write_text("""
        [network]
        architecture = "c8d2k3x2"
        [[stage]]
        name = "one"
        hr_patch = 24
        batch = 4
        lr = 1e-3
        decay = "cosine"
        iterations = 320
    """)
    ended = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
            "-m", "espan", "train", str(experiment), str(photos), "--cpu", "--dry-run",
        ],
        capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("320 steps in about") == 1
