"""Which backends are available, why the others are not, and which one is chosen."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from espan_kernels import _library, _on_gpus, backends


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate an H100, a T4 and a V100, and a library with kernels for the first."""
    capabilities = [(9, 0), (7, 5), (7, 0)]
    names = ["NVIDIA H100", "Tesla T4", "Tesla V100"]

    def of(values: list) -> Callable:
        return lambda device=None: values[(torch.device(device).index or 0) if device else 0]

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", of(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", of(names))
    set_driver(monkeypatch, 13000)
    library = SimpleNamespace(cpu_path=lambda: "avx2", cpu_path_has_bfloat16=lambda: False)
    monkeypatch.setattr(_library, "compiled", library)
    monkeypatch.setattr(_library, "cuda_archs", "8.0,9.0,12.0+PTX")
    monkeypatch.setattr(_library, "cuda_version", "13.0")
    monkeypatch.setattr(_library, "triton_installed", True)
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(Path(__file__).parent))
    monkeypatch.setattr(os.path, "exists", lambda path: True)


def set_driver(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    def get_version(pointer: object) -> int:
        pointer._obj.value = version  # type: ignore[attr-defined]
        return 0

    driver = SimpleNamespace(cuDriverGetVersion=get_version)
    monkeypatch.setattr(backends.ctypes, "CDLL", lambda name: driver)


def test_unavailable_backends_are_listed_with_a_reason() -> None:
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
        "this build has kernels for compute capability 8.0, but the GPU (NVIDIA H100) has 9.0"
    )
    monkeypatch.setattr(_library, "triton_installed", False)
    assert backends.choose("cuda") == "reference"
    with pytest.raises(RuntimeError, match="the triton backend cannot be used: triton is not inst"):
        backends.choose("cuda", "triton")


@pytest.mark.usefixtures("gpu")
def test_the_given_device_is_queried() -> None:
    assert backends.choose("cuda:0") == "cuda"
    for device, name, capability in (("cuda:1", "Tesla T4", 7.5), ("cuda:2", "Tesla V100", 7.0)):
        assert backends.choose(device) == "reference"
        found = backends.available(device)
        gpu = f"the GPU ({name}) has {capability}"
        assert found["cuda"].reason == (
            f"this build has kernels for compute capability 8.0,9.0,12.0+PTX, but {gpu}"
        )
        assert found["triton"].reason == (
            f"Triton needs compute capability 8.0 or later, but {gpu}"
        )
        for backend in ("cuda", "triton"):
            with pytest.raises(RuntimeError, match=name):
                backends.choose(device, backend)
    assert backends.available()["cuda"].available
    with pytest.raises(RuntimeError, match="there is no cuda:3: torch sees 3 GPUs"):
        backends.choose("cuda:3", "cuda")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("archs", "driver", "runs"),
    [
        ("9.0", 13000, True),
        ("9.0", 13020, True),
        ("9.0", 12080, False),  # another major version
        ("9.0", 14000, True),
        ("8.0+PTX", 13000, True),
        ("8.0+PTX", 12080, False),
    ],
)
@pytest.mark.parametrize("toolkit", ["13.0", "13.1"])
def test_an_old_driver(
    monkeypatch: pytest.MonkeyPatch, archs: str, driver: int, runs: bool, toolkit: str
) -> None:
    monkeypatch.setattr(_library, "cuda_archs", archs)
    monkeypatch.setattr(_library, "cuda_version", toolkit)
    set_driver(monkeypatch, driver)
    if "PTX" in archs and (driver, toolkit) == (13000, "13.1"):
        runs = False  # the driver cannot compile it
    backend = backends.available()["cuda"]
    assert backend.available is runs
    assert backends.choose("cuda") == ("cuda" if runs else "triton")
    if not runs:
        assert backend.reason == (
            f"this build needs CUDA {toolkit}, but the NVIDIA driver supports only CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}; update the driver, or build with an older "
            "toolkit"
        )


@pytest.mark.usefixtures("gpu")
def test_other_requirements_of_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "exists", lambda path: not path.endswith("Python.h"))
    assert "there is no Python.h in" in backends.available()["triton"].reason
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", "")
    assert backends.available()["triton"].reason == (
        "Triton needs a C compiler: install gcc, or set CC"
    )


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict:
    """Collects what `_on_gpus.register` registers, instead of registering it."""
    functions: dict = {}
    monkeypatch.setattr(_library, "implement_on_gpus", functions.__setitem__)

    def implementation(op: str, backend: str) -> Callable:
        return lambda keys, *arguments: (op, backend, len(arguments))

    monkeypatch.setattr(_on_gpus, "implementation", implementation)
    return functions


@pytest.mark.usefixtures("gpu")
def test_ops_choose_by_the_device_of_their_tensors(registered: dict) -> None:
    """Training and the loss call the ops, which run on the backend that `choose` returns."""
    _on_gpus.register()
    assert set(registered) == set(_on_gpus.TRITON)
    for op in ("gate", "gate_backward", "frequency_loss", "frequency_loss_gradient"):
        for device, backend in (("cuda:0", "cuda"), ("cuda:1", "reference"), ("cuda:0", "cuda")):
            first = SimpleNamespace(device=torch.device(device))
            assert registered[op](None, first, 1, 2) == (op, backend, 3)


@pytest.mark.parametrize(
    ("path", "has", "how"),
    [
        ("amx", True, "on the matrix unit"),
        ("avx512", True, "with avx512_bf16"),
        ("avx512", False, "by PyTorch's operators"),
    ],
)
def test_what_computes_bfloat16_is_named(
    monkeypatch: pytest.MonkeyPatch, path: str, has: bool, how: str
) -> None:
    library = SimpleNamespace(cpu_path=lambda: path, cpu_path_has_bfloat16=lambda: has)
    monkeypatch.setattr(_library, "compiled", library)
    assert backends._details("cpu")["bf16"] == how


@pytest.mark.usefixtures("gpu")
def test_nothing_is_registered_if_the_kernels_run_on_every_gpu(
    monkeypatch: pytest.MonkeyPatch, registered: dict
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    _on_gpus.register()
    assert not registered
    monkeypatch.setattr(_library, "cuda_archs", "")
    monkeypatch.setattr(
        _library.compiled, "built_without_cuda_because", lambda: "cpu_requested", raising=False
    )
    _on_gpus.register()
    first = SimpleNamespace(device=torch.device("cuda:0"))
    assert registered["gate"](None, first, 1) == ("gate", "triton", 2)


def test_implementations() -> None:
    """The implementations of the backends that are not compiled."""
    for op, function in _library.references.items():
        assert callable(_on_gpus.implementation(op, "reference")), function
    o, x = torch.rand(2, 5)
    torch.testing.assert_close(
        _on_gpus.implementation("gate", "reference")(None, o, x), (o + x) * (o.sigmoid() - 0.5)
    )
    on_cpus = {"network", "conv3x3", "conv3x3_weight_gradient"}
    assert set(_on_gpus.TRITON) == set(_library.references) - on_cpus


def test_overriding_an_implementation_causes_no_warning() -> None:
    """Runs in a separate process, because registration cannot be undone."""
    code = """
import warnings
warnings.simplefilter("error")
import torch
from espan_kernels import _library, _on_gpus

calls = []
key = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
impl = _library._fragment.impl
# CPU tensors stand for those of a GPU: their kernels, if there are any, are overridden.
_library._fragment.impl = lambda op, f, key, **more: impl(op, f, "CPU", **more)

def by_device(keys, o, x):
    calls.append(keys)
    return _on_gpus.implementation("gate", "reference")(keys, o, x)

before = torch.library.get_kernel("espan::gate", "CPU")
_library.implement_on_gpus("gate", by_device)
o, x = torch.rand(2, 5).requires_grad_().unbind()
y = torch.ops.espan.gate(o, x)
y.sum().backward()
assert len(calls) == 1
torch.testing.assert_close(before.call_boxed(calls[0], o.detach(), x.detach()), y.detach())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


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
@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update",
            "torch can use no NVIDIA GPU: The NVIDIA driver on your system is too old (found "
            "version 11040)",
        ),
        (
            "Found no NVIDIA driver on your system. Please check that",
            "torch can use no NVIDIA GPU: Found no NVIDIA driver on your system",
        ),
        ("No CUDA GPUs are available", "torch can use no NVIDIA GPU: No CUDA GPUs are available"),
        (None, "torch can use no NVIDIA GPU"),
    ],
)
def test_no_gpu(monkeypatch: pytest.MonkeyPatch, raised: str | None, reason: str) -> None:
    def init() -> None:
        if raised:
            raise RuntimeError(raised)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    for name in ("cuda", "triton"):
        assert backends.available()[name].reason == reason
    assert backends.choose("cuda") == "reference"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in backends.available()["cuda"].reason


def test_wrong_requests() -> None:
    with pytest.raises(ValueError, match="there is no backend 'gpu'; choose auto, cuda, triton"):
        backends.choose("cpu", "gpu")
    with pytest.raises(RuntimeError, match="the cuda backend does not run on cpu tensors"):
        backends.choose("cpu", "cuda")


@pytest.mark.parametrize(
    ("archs", "capability", "code"),
    [
        ("8.0,9.0", (9, 0), "machine code"),
        ("8.0", (8, 6), "machine code"),
        ("8.6", (8, 0), ""),
        ("8.0", (9, 0), ""),
        ("8.0+PTX", (9, 0), "PTX"),
        ("8.0+PTX,9.0", (9, 0), "machine code"),
        ("12.0+PTX", (10, 0), ""),
        ("9.0a", (9, 0), "machine code"),
        ("10.0a", (10, 3), ""),
        ("9.0a+PTX", (10, 0), ""),
        ("10.0f", (10, 3), "machine code"),
    ],
)
def test_code_for(archs: str, capability: tuple[int, int], code: str) -> None:
    assert backends._code_for(archs, capability) == code


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_is_not_imported_until_it_is_used() -> None:
    code = "import sys, espan_kernels; espan_kernels.backends.available(); "
    code += "sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.usefixtures("gpu")
def test_a_driver_without_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(backends.ctypes, "CDLL", missing)
    assert backends.choose("cuda:0") == "cuda"


def test_a_failure_does_not_stop_pytorch_from_starting_cuda(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(device: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(backends, "choose", fail)
    with pytest.warns(UserWarning, match="cannot select kernels for the GPUs.*no such thing"):
        _on_gpus.register()
