"""The source of the gate's CUDA kernels on the CPU: values, vectors, remainders, bounds."""

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels import gate_cases as cases

HERE = Path(__file__).parent
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def cuda_headers() -> Path:
    if home := os.environ.get("CUDA_HOME"):
        return Path(home) / "include"
    if (nvcc := shutil.which("nvcc")) is None:
        pytest.skip("there is no CUDA toolkit, whose headers this needs")
    output = subprocess.run([nvcc, "--dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = re.search(r"TOP=(.*)", output)
    assert top is not None
    return Path(top[1]) / "include"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    headers = cuda_headers()
    if (compiler := shutil.which("g++") or shutil.which("c++")) is None:
        pytest.skip("there is no C++ compiler")
    library = tmp_path_factory.mktemp("cuda_on_cpu") / "gate.so"
    command = [compiler, "-O1", "-std=c++17", "-w", "-shared", "-fPIC", "-o", library]
    command += [HERE / "gate_cuda_on_cpu.cpp", f"-I{HERE.parents[1] / 'csrc'}", f"-I{headers}"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(library))


def call(
    kernels: ctypes.CDLL, name: str, inputs: list[Tensor], outputs: int, aligned: bool
) -> tuple[Tensor, ...]:
    """Run the kernel; each output is written to the middle of a buffer of NaN."""
    n, dtype = inputs[0].numel(), inputs[0].dtype
    margin = 64 if aligned else 65
    buffers = [torch.full((n + 200,), float("nan"), dtype=dtype) for _ in range(outputs)]
    results = [buffer[margin : margin + n] for buffer in buffers]
    packs = n // (16 // inputs[0].element_size()) if aligned else 0
    function = getattr(kernels, f"{name}_{str(dtype).removeprefix('torch.')}")
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (*inputs, *results)]
    function(*pointers, ctypes.c_int64(packs), ctypes.c_int64(n))
    for buffer in buffers:
        assert buffer[:margin].isnan().all()
        assert buffer[margin + n :].isnan().all()
    return tuple(results)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_values(kernels: ctypes.CDLL, dtype: torch.dtype, aligned: bool) -> None:
    def gate(o: Tensor, x: Tensor) -> Tensor:
        return call(kernels, "forward", [o, x], 1, aligned)[0]

    def gate_backward(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        grad_o, grad_x = call(kernels, "backward", [grad, o, x], 2, aligned)
        return grad_o, grad_x

    for n in (0, 1, 7, 8, 9, 95, 96, 97, 1000):  # 96 threads in all
        grad, o, x = cases.inputs(n, dtype=dtype)
        cases.check_values(gate, o, x)
        cases.check_gradients(gate_backward, grad, o, x)
    cases.check_octaves(gate, dtype)
    for scale in cases.decades(dtype):
        grad, o, x = cases.inputs(500, dtype=dtype, scale=scale)
        cases.check_values(gate, o, x)
        cases.check_values(gate, o, torch.zeros_like(x))
        cases.check_gradients(gate_backward, grad, o, x)
    o, x = cases.special(dtype)
    exact = cases.reference.gate(o.double(), x.double())
    assert torch.equal(gate(o, x).isnan(), exact.isnan())
    assert torch.equal(gate(o, x).isinf(), exact.to(dtype).isinf())
