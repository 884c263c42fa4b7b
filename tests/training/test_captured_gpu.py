"""The captured step on a GPU: it equals the same operations one at a time, and the step before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from espan.errors import EspanError
from espan.training import steps as steps_module
from espan.training.captured import CapturedStep
from espan.training.run import Setup, reopen
from espan.training.steps import Trainer
from espan.training.train import resume, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

STAGES = (
    {"change": {"teacher": 1}, "loss": {"pixel": "l2", "hf": 1.0, "dct": 0.001}, "iterations": 7},
    {"name": "two", "change": {"keep": "teacher", "scale": 3}, "iterations": 7, "warm_up": 3},
)


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(steps_module, "SECONDS_BETWEEN_READS", 1e9)


def run_of(folder: Path, experiment: Any, photos: Path, precision: str, **setup: Any) -> dict:
    """Train, and return the last save."""
    options = {"workers": 2} | setup
    data = {"data": (photos,), "hold_out": ("1.png",), "precision": precision}
    train(folder, experiment, Setup(**data, **options), console=Console(quiet=True))
    return state_of(folder)


def state_of(folder: Path) -> dict[str, Any]:
    found = reopen(folder).load(print)
    assert found is not None
    return found


def tensors(state: dict[str, Any]) -> list[torch.Tensor]:
    moments = [t for _, one in sorted(state["optimizer"]["state"].items()) for t in one.values()]
    return [*state["network"].values(), *state["average"].values(), *moments]


def not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = Trainer._train_captured
    monkeypatch.setattr(
        Trainer, "_train_captured", lambda self, crops, capture: inner(self, crops, capture=False)
    )


def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "_train_captured", lambda self, crops, capture: self._train(crops))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("conv", ["grep", "plain"])
def test_captured_steps_have_the_bits_of_those_that_are_not(
    tiny, photos: Path, tmp_path: Path, monkeypatch, precision: str, conv: str
) -> None:
    experiment = tiny(*STAGES, top={"network": {"architecture": "c8d2k3x2", "conv": conv}})
    found = run_of(tmp_path / "found", experiment, photos, precision)
    not_captured(monkeypatch)
    expected = run_of(tmp_path / "expected", experiment, photos, precision)
    assert found["scaler"] == expected["scaler"]
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp64", 1e-6), ("fp32", 1e-4), ("bf16", 5e-3), ("fp16", 5e-3)]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_captured_run_equals_an_eager_one(
    tiny, photos: Path, tmp_path: Path, monkeypatch, precision: str, tolerance: float,
    accumulate: int,
) -> None:  # fmt: skip
    found = run_of(tmp_path / "found", tiny(*STAGES), photos, precision, accumulate=accumulate)
    eager(monkeypatch)
    expected = run_of(tmp_path / "expected", tiny(*STAGES), photos, precision)
    assert found["skipped"] == expected["skipped"]
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_the_host_waits_for_no_step(tiny, photos: Path, tmp_path: Path, monkeypatch) -> None:
    inner, calls = CapturedStep.__call__, []

    def call(self: CapturedStep, *args: Any, **kwargs: Any) -> None:
        calls.append(self)
        # The first steps allocate pinned memory, and their capture waits.
        torch.cuda.set_sync_debug_mode("error" if len(calls) > 5 else "default")
        try:
            inner(self, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(CapturedStep, "__call__", call)
    experiment = tiny({"iterations": 12}, top={"validate_every": 12})
    run_of(tmp_path / "run", experiment, photos, "fp32")
    assert len(calls) == 12


def test_a_resumed_run_has_the_bits_of_a_whole_one(
    tiny, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    experiment = tiny({"iterations": 16}, top={"validate_every": 8})
    whole = run_of(tmp_path / "whole", experiment, photos, "fp16")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_measured", stop_at(8))
        with pytest.raises(KeyboardInterrupt):
            run_of(tmp_path / "run", experiment, photos, "fp16")
    assert state_of(tmp_path / "run")["step"] == 8
    resume(tmp_path / "run", console=Console(quiet=True))
    resumed = state_of(tmp_path / "run")
    assert resumed["scaler"] == whole["scaler"]
    for one, other in zip(tensors(resumed), tensors(whole), strict=True):
        assert torch.equal(one, other)


def stop_at(step: int) -> Callable[..., None]:
    inner = Trainer._measured

    def measured(self: Trainer, *args: Any) -> None:
        inner(self, *args)
        if self.step == step:
            raise KeyboardInterrupt

    return measured


def nan_in_steps(monkeypatch: pytest.MonkeyPatch, first: int, last: int) -> None:
    """The loss is NaN in these steps; they are counted on the GPU, where the graph counts too."""
    inner, count = steps_module.loss_of, torch.zeros((), device="cuda")

    def loss_of(*arguments: Any) -> torch.Tensor:
        count.add_(1)
        wrong = (count >= first) & (count <= last)
        return inner(*arguments) * torch.where(wrong, torch.nan, 1.0)

    monkeypatch.setattr(steps_module, "loss_of", loss_of)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_steps_that_are_not_finite_change_nothing(
    tiny, photos: Path, tmp_path: Path, monkeypatch, precision: str
) -> None:
    experiment = tiny({"iterations": 12}, top={"validate_every": 12})
    with monkeypatch.context() as patch:
        # Once while the step is not yet captured, and in replays.
        nan_in_steps(patch, 3, 6)
        found = run_of(tmp_path / "found", experiment, photos, precision)
    with monkeypatch.context() as patch:
        nan_in_steps(patch, 3, 6)
        eager(patch)
        expected = run_of(tmp_path / "expected", experiment, photos, precision)
    assert found["skipped"] >= 4
    assert found["skipped"] == expected["skipped"]
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)


def test_a_run_that_diverges_ends(tiny, photos: Path, tmp_path: Path, monkeypatch) -> None:
    nan_in_steps(monkeypatch, 6, 25)
    experiment = tiny({"iterations": 60}, top={"validate_every": 30})
    with pytest.raises(EspanError, match=r"step 30: .* for 20 steps in a row"):
        run_of(tmp_path / "run", experiment, photos, "fp32")
    assert state_of(tmp_path / "run")["step"] == 0
