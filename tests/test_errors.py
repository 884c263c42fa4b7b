"""Out-of-memory errors are recognised on every device."""

import pytest
import torch

from espan.errors import EspanError, out_of_memory


def test_on_this_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
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
