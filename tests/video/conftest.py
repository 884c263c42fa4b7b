"""Runs of `espan video` in this process, with the bundled weights."""

from __future__ import annotations

import pytest

from espan import fused


@pytest.fixture(scope="session")
def network() -> fused.FusedNetwork:
    return fused.load(device="cpu")


@pytest.fixture
def upscale(network):
    """A function that upscales a file with `Options` and returns the notes."""

    def run(path, target, **options):
        from espan.video.run import Options, upscale_video

        return upscale_video(path, target, network, Options(**options)).notes

    return run
