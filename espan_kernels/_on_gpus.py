"""Which kernels an op runs on a GPU: those of the best backend for that device.

The dispatcher has one implementation of an op for all GPUs, and a machine may have GPUs of several
kinds.  If the compiled kernels run on all of them, nothing is registered here.  Otherwise each call
chooses by its device.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from espan_kernels import _library, backends

# The module in espan_kernels.triton that has the op.  It is imported when a GPU first needs it.
TRITON = {
    "gate": "gate",
    "gate_backward": "gate",
    "frequency_loss": "frequency_loss",
    "frequency_loss_gradient": "frequency_loss",
    "head": "head",
    "spab": "spab",
    "tail": "tail",
}


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """The function that runs ``op`` on ``backend``; it takes the dispatch keys first."""
    if backend == "cuda":
        # Taken before `register` takes its place.
        return torch.library.get_kernel(f"espan::{op}", "CUDA").call_boxed
    if backend == "triton":
        function = getattr(importlib.import_module(f"espan_kernels.triton.{TRITON[op]}"), op)
    else:
        function = _library.references[op]
    return lambda keys, *arguments: function(*arguments)


def by_device(op: str) -> Callable[..., Any]:
    """An implementation of ``op`` that uses the best backend for its first argument's device."""
    found = {"cuda": implementation(op, "cuda")} if _library.cuda_archs else {}
    choose = cache(backends.choose)

    def run(keys: torch.DispatchKeySet, first: torch.Tensor, *others: Any) -> Any:
        backend = choose(first.device)
        if backend not in found:
            found[backend] = implementation(op, backend)
        return found[backend](keys, first, *others)

    return run


def register() -> None:
    """Register `by_device` for every op unless the compiled kernels run on all GPUs here."""
    try:
        gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        if all(backends.choose(gpu) == "cuda" for gpu in gpus):
            return
        for op in TRITON:
            _library.implement_on_gpus(op, by_device(op))
    except Exception as error:  # raised here, it would keep PyTorch from starting CUDA
        warnings.warn(f"espan cannot choose its kernels by GPU: {error!r}", stacklevel=2)


# Asking for a GPU's capability starts CUDA, which takes a second and memory, and which a process
# must not do before it forks.  So this runs when something else starts CUDA.
torch.cuda._lazy_call(register)
