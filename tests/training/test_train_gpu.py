"""Training on a GPU (not yet run on one)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

import espan
from espan.training.log import read_metrics
from espan.training.run import Setup
from espan.training.train import resume, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns(tiny, photos: Path, tmp_path: Path, precision: str) -> None:
    setup = Setup(data=(photos,), hold_out=("1.png",), precision=precision, workers=1)
    loss = {"pixel": "l2", "hf": 1.0, "dct": 0.001}
    stages = ({"change": {"teacher": 1}, "loss": loss, "iterations": 60},
              {"name": "two", "change": {"keep": "teacher"}, "iterations": 60})  # fmt: skip
    experiment = tiny(*stages, top={"validate_every": 30})
    best = train(tmp_path / "run", experiment, setup, console=Console(quiet=True))
    first, last = (
        next(m for m in read_metrics(tmp_path / "run") if m["step"] == step and "loss" in m)
        for step in (30, 120)
    )
    assert last["loss"] < first["loss"]
    assert torch.cuda.get_device_name() == espan.load(best).record["machine"]
    resume(tmp_path / "run", console=Console(quiet=True))
