"""Out-of-memory errors are recognised on every device."""

import pytest
import torch

import espan_kernels
from espan.errors import EspanError, out_of_memory
from espan_kernels import backends


@pytest.mark.parametrize("ours", [False, True])
def test_on_this_cpu(ours: bool) -> None:
    """In PyTorch, and in an op of ours."""
    if ours and not backends.available()["cpu"].available:
        pytest.skip("there are no compiled kernels")
    many = torch.zeros(1, 1, 1, 1).expand(1, 1, 1 << 20, 1 << 24)
    with pytest.raises(RuntimeError) as caught:
        espan_kernels.gate(many, many) if ours else many.clone()
    assert not isinstance(caught.value, (MemoryError, torch.OutOfMemoryError))
    assert out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_recognised(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        EspanError("out of memory.png is damaged"),
        OSError("Cannot allocate memory"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_recognised(error: BaseException) -> None:
    assert not out_of_memory(error)
