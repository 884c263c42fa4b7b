"""Training starts from the weights of every member of the family."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from rich.console import Console

import espan
from espan.checkpoints import save
from espan.errors import RangeWarning
from espan.evaluation.evaluate import Score, evaluate, find_pairs
from espan.models import ESPAN, SPAN, Network
from espan.training.experiment import read
from espan.training.log import read_metrics
from espan.training.run import Setup
from espan.training.steps import Trainer
from espan.training.train import train
from espan.upscaling import Upscaler
from tests.family import MEMBERS

OWN = {"espan": ESPAN.replace(channels=8), "span": SPAN.replace(channels=8)}
CASES = [
    (name, branches)
    for name in (
        "spanv2 x3",
        "spanf x2",
        "spanf3 x4",
        "spanf3 x1, unshuffled by 4",
        "spanplus x2, s",
    )
    for branches in ({False, MEMBERS[name].branches})
] + [(name, False) for name in OWN]


def file_of(name: str, branches: bool, path: Path) -> Path:
    if name not in OWN:
        torch.save({"params": MEMBERS[name].network(branches=branches).float().state_dict()}, path)
        return path
    torch.manual_seed(0)
    network = Network(OWN[name]).requires_grad_(False)
    save(network, path.with_suffix(".safetensors"), record={})
    return path.with_suffix(".safetensors")


@pytest.mark.parametrize(
    ("name", "branches", "on_a_gpu"),
    [
        *((*case, False) for case in CASES),
        ("spanf3 x4", True, True),
        *(
            pytest.param(*case, True, marks=pytest.mark.slow)
            for case in CASES
            if case != ("spanf3 x4", True)
        ),
    ],
)
def test_fine_tuning(
    name: str, branches: bool, on_a_gpu: bool, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    """It begins with the scores of the file, changes the weights and keeps the architecture."""
    if on_a_gpu:
        monkeypatch.setattr(
            Trainer, "_train", lambda self, crops: self._train_captured(crops, capture=False)
        )
    file = file_of(name, branches, tmp_path / "weights.pth")
    start = espan.load(file)
    experiment = read("finetune")
    stage = experiment.stage[0].model_copy(
        update={"hr_patch": 24, "batch": 2, "iterations": 3, "warm_up": 0, "lr": 1e-4}
    )
    experiment = experiment.model_copy(update={"stage": [stage]})
    setup = Setup(data=(photos,), validate=photos, weights=str(file), cpu=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RangeWarning)  # the weights are random
        best = train(tmp_path / "run", experiment, setup, console=Console(quiet=True))
        scores = list(evaluate(find_pairs(photos, None, []), Upscaler(str(file), device="cpu")))
    assert all(isinstance(score, Score) for score in scores)
    first = read_metrics(tmp_path / "run")[0]
    mean = sum(score.psnr for score in scores) / len(scores)
    assert first["psnr network"] == pytest.approx(mean, abs=2e-4)  # rounded to 4 digits
    last = espan.load(tmp_path / "run" / "last.safetensors")
    assert last.architecture == espan.load(best).architecture == start.architecture
    trained = last.state_dict()
    assert any(not torch.equal(trained[n], v) for n, v in start.state_dict().items())
    assert last.record["from"] == file.name
