"""Fixtures shared by several tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from espan.models import Architecture, Network


@pytest.fixture(autouse=True, scope="session")
def _interruptible() -> None:
    """Restore Ctrl-C, which a shell disables in background jobs and their subprocesses."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Seed the random numbers, so that a test sees the same ones in every run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """The folder of official weights and test sets, which are not part of the project."""
    folder = os.environ.get("ESPAN_TESTDATA")
    if not folder:
        pytest.skip("ESPAN_TESTDATA is not set: it names a folder with weights/ and testsets/")
    return Path(folder)


@pytest.fixture
def make_network():
    """A function that returns a plain network with random weights of about unit gain."""

    def make(architecture: Architecture, seed: int = 0) -> Network:
        generator = torch.Generator().manual_seed(seed)
        network = Network(architecture).eval().requires_grad_(False)
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
        return network

    return make
