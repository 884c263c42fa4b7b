"""Fixtures for the CPU kernels."""

from collections.abc import Iterator

import pytest
import torch

from espan_kernels import _library


@pytest.fixture(params=["portable", "avx2", "avx512", "amx"])
def cpu_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every CPU path that this machine can run; only `network` has its own code for amx."""
    if _library.compiled is None:
        pytest.skip(_library.why_not_compiled)
    try:
        _library.compiled.select_cpu_path(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _library.compiled.select_cpu_path("auto")


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)
