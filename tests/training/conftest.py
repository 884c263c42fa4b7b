"""Synthetic photographs and tiny experiments.

Without the packages of the extra "train", the tests in this folder are not collected.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from espan.imaging import Image, imresize, write_image

needed = ("accelerate", "matplotlib", "pydantic", "tensorboard")
collect_ignore_glob = [] if all(map(importlib.util.find_spec, needed)) else ["test_*.py"]

TINY = {
    "validate_every": 4,
    "network": {"architecture": "c8d2k3x2", "init": "bilinear"},
    "optimizer": {"clip": 1.0, "average": 0.999},
    "stage": [
        {
            "name": "one",
            "hr_patch": 24,
            "batch": 4,
            "lr": 1e-3,
            "decay": "cosine",
            "iterations": 8,
        }
    ],
}


@pytest.fixture(autouse=True)
def _one_thread_and_a_fresh_process():
    """One thread, so that bits do not depend on the machine; resets Accelerate's global state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _short_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Omit two thirds of the time of a run of a few steps.

    `curves.png` is empty, except in tests that use the fixture `drawn`; and the garbage collection
    at the end of a stage does not visit the modules, whose objects are counted in millions.
    """
    from espan.training import pictures

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(pictures, "curves", lambda folder: (folder / "curves.png").touch())
    gc.freeze()


@pytest.fixture
def drawn() -> None:
    """Draw the curves at the end of the runs of this test."""


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five synthetic photographs of 80 x 64: smooth noise with edges."""
    folder = tmp_path_factory.mktemp("photos")
    for seed in range(5):
        small = np.random.default_rng(seed).random((8, 10, 3)) * 1.6 - 0.3
        pixels = (imresize(small, 8).clip(0, 1) * 255).astype(np.uint8)
        write_image(folder / f"{seed}.png", Image(pixels))
    return folder


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """An experiment of one short stage; keyword arguments change the stage, `top` the rest."""
    from espan.training.experiment import Experiment, from_data

    def make(*stages: dict[str, Any], top: dict[str, Any] | None = None) -> Experiment:
        data = copy.deepcopy(TINY) | (top or {})
        if stages:
            data["stage"] = [TINY["stage"][0] | stage for stage in stages]
        return from_data(data, "tiny")

    return make
