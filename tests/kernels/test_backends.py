"""What is available, why not, and which is chosen."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch

from espan_kernels import _library, backends


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that sees an H100, and a library with kernels for it."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    monkeypatch.setattr(_library, "compiled", SimpleNamespace(cpu_path=lambda: "avx2"))
    monkeypatch.setattr(_library, "cuda_archs", "8.0,9.0,12.0+PTX")
    monkeypatch.setattr(_library, "triton_installed", True)


def test_every_backend_is_listed_with_a_reason_if_it_is_not_there() -> None:
    found = backends.available()
    assert list(found) == ["cuda", "triton", "cpu", "reference"]
    for name, backend in found.items():
        assert backend.name == name
        assert backend.available == (backend.reason == "")
    assert found["reference"].available


@pytest.mark.usefixtures("gpu")
def test_best_backend_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.choose("cuda") == "cuda"
    assert backends.choose("cuda:0", "triton") == "triton"
    assert backends.choose("cpu") == "cpu"
    assert backends.choose("meta") == "reference"
    monkeypatch.setattr(_library, "cuda_archs", "8.0")
    assert backends.choose("cuda") == "triton"
    assert backends.available()["cuda"].reason == (
        "this build has kernels for 8.0, and the GPU (NVIDIA H100) is 9.0"
    )
    monkeypatch.setattr(_library, "triton_installed", False)
    assert backends.choose("cuda") == "reference"
    with pytest.raises(RuntimeError, match="the triton backend cannot be used: triton is not inst"):
        backends.choose("cuda", "triton")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("nvcc_not_found", "this build has no CUDA kernels: nvcc was not found when it was built"),
        ("cpu_requested", "this build has no CUDA kernels: it was built with ESPAN_BUILD=cpu"),
    ],
)
def test_built_without_cuda(monkeypatch: pytest.MonkeyPatch, why: str, reason: str) -> None:
    monkeypatch.setattr(_library, "cuda_archs", "")
    monkeypatch.setattr(_library.compiled, "built_without_cuda_because", lambda: why, raising=False)
    assert backends.available()["cuda"].reason == reason


@pytest.mark.usefixtures("gpu")
def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "triton"):
        assert backends.available()[name].reason == "no NVIDIA GPU is visible to torch"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in backends.available()["cuda"].reason


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="there is no backend 'gpu'; choose auto, cuda, triton"):
        backends.choose("cpu", "gpu")
    with pytest.raises(RuntimeError, match="the cuda backend does not run on cpu tensors"):
        backends.choose("cpu", "cuda")


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        ("8.0,9.0", (9, 0), True),
        ("8.0", (8, 6), True),
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("12.0+PTX", (10, 0), False),
        ("9.0a", (9, 0), True),
        ("10.0a", (10, 3), False),
        ("9.0a+PTX", (10, 0), False),
        ("10.0f", (10, 3), True),
    ],
)
def test_covers(archs: str, capability: tuple[int, int], covered: bool) -> None:
    assert backends._covers(archs, capability) is covered


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_is_not_imported_until_it_is_used() -> None:
    import subprocess
    import sys

    code = "import sys, espan_kernels; espan_kernels.backends.available(); "
    code += "sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
