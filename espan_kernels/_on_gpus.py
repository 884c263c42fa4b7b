"""What an op runs on a GPU: the kernels of the backend that is best for that device.

The dispatcher knows one implementation of an op for all GPUs, and a machine may have several kinds.
Where the compiled kernels are for all of them nothing is done.  Else each call asks for its device.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from espan_kernels import _library, backends


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """What runs ``op`` on ``backend``, called with the dispatch keys and the op's arguments."""
    if backend == "cuda":
        # Taken before `register` takes its place.
        return torch.library.get_kernel(f"espan::{op}", "CUDA").call_boxed
    function = (_library.triton if backend == "triton" else _library.references)[op]
    return lambda keys, *arguments: function(*arguments)


def by_device(op: str) -> Callable[..., Any]:
    """An implementation of ``op`` that takes the best backend of its first argument's device."""
    found = {"cuda": implementation(op, "cuda")} if _library.cuda_archs else {}
    choose = cache(backends.choose)

    def run(keys: torch.DispatchKeySet, first: torch.Tensor, *others: Any) -> Any:
        backend = choose(first.device)
        if backend not in found:
            found[backend] = implementation(op, backend)
        return found[backend](keys, first, *others)

    return run


def register() -> None:
    """Register `by_device` for every op unless the compiled kernels are for all GPUs here."""
    try:
        gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        if all(backends.choose(gpu) == "cuda" for gpu in gpus):
            return
        for op in _library.triton:
            _library.implement_on_gpus(op, by_device(op))
    except Exception as error:  # PyTorch runs this when it starts CUDA: it would fail for everybody
        warnings.warn(f"espan cannot choose its kernels by GPU: {error!r}", stacklevel=2)


# Asking for a GPU's capability starts CUDA, which takes a second and memory, and which a process
# that forks must not do: this waits until somebody else does.
torch.cuda._lazy_call(register)
