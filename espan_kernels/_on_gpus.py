"""Runs each op on a GPU with the best backend for that GPU.

PyTorch's dispatcher has one implementation of an op for all GPUs, but a machine may have different
ones.  If the compiled kernels run on all of them, this module registers nothing.  Otherwise, it
registers implementations that choose a backend in each call.
"""

import importlib
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from espan_kernels import _library, backends

# The module of espan_kernels.triton with each op.  It is imported when a GPU first needs it.
TRITON = {
    "gate": "gate",
    "gate_backward": "gate",
    "frequency_loss": "frequency_loss",
    "frequency_loss_gradient": "frequency_loss",
    "head": "head",
    "spab": "spab",
    "tail": "tail",
    "upsample": "upsample",
}


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """The function that runs ``op`` on ``backend``; its first argument is the dispatch keys."""
    if backend == "cuda":
        # The compiled kernel, which `register` is about to override.
        return torch.library.get_kernel(f"espan::{op}", "CUDA").call_boxed
    if backend == "triton":
        function = getattr(importlib.import_module(f"espan_kernels.triton.{TRITON[op]}"), op)
    else:
        function = _library.references[op]
    return lambda keys, *arguments: function(*arguments)


def by_device(op: str) -> Callable[..., Any]:
    """An implementation of ``op`` that uses the best backend for the device of its first input."""
    found = {"cuda": implementation(op, "cuda")} if _library.cuda_archs else {}
    choose = cache(backends.choose)

    def run(keys: torch.DispatchKeySet, first: torch.Tensor, *others: Any) -> Any:
        backend = choose(first.device)
        if backend not in found:
            found[backend] = implementation(op, backend)
        return found[backend](keys, first, *others)

    return run


def register() -> None:
    """Register `by_device` for every op, unless the compiled kernels run on all GPUs."""
    try:
        gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        if all(backends.choose(gpu) == "cuda" for gpu in gpus):
            return
        for op in TRITON:
            _library.implement_on_gpus(op, by_device(op))
    except Exception as error:  # an exception here would stop PyTorch from initialising CUDA
        warnings.warn(f"espan cannot select kernels for the GPUs: {error!r}", stacklevel=2)


# Querying a GPU's capability initialises CUDA, which takes a second and memory, and must not happen
# before a process forks.  Therefore this waits until something else initialises CUDA.
torch.cuda._lazy_call(register)
