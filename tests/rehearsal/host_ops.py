"""A pytest plugin that runs torch's own ops on CUDA tensors on the CPU, in their shared memory.

Only the kernels of csrc/cuda are emulated.  An op in a captured graph is recorded like a kernel,
and runs when the graph runs.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

RUNTIME = ctypes.CDLL(os.environ["ESPAN_REHEARSAL_RUNTIME"])
CALL = ctypes.CFUNCTYPE(None)
# Kept, because graphs may be replayed until the process ends.
RECORDED: list[object] = []
# Ops without a kernel: views, memory, and a copy to the host.
NATIVE = {
    "_efficientzerotensor",
    "_local_scalar_dense",
    "_reshape_alias",
    "as_strided",
    "empty.memory_format",
    "empty_strided",
    "is_pinned",
    "is_set_to",
    "record_stream",
    "resize_",
    "set_",
    "set_.source_Storage",
    "set_.source_Storage_storage_offset",
    "set_.source_Tensor",
    "unfold",
    "view",
    "view_as_complex",
    "view_as_real",
}
# Tests that need a real GPU or driver: compiled kernels, profiler events, and images for which the
# emulation would take many minutes.
NOT_HERE = ("triton", "compile", "one_launch", "training_batch", "set14")


def shared(t: Tensor) -> Tensor:
    """A CPU tensor that shares the memory."""
    storage = t.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    raw = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=t.dtype).set_(raw, t.storage_offset(), t.shape, t.stride())


def on_device(t: Tensor, device: torch.device) -> Tensor:
    """A copy on ``device``, asynchronous like a kernel of torch."""
    copy = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
    if t.numel():
        shared(copy).copy_(t)
    return copy


def host_op(op: torch._ops.OpOverload) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        # A number instead of a tensor selects another overload.
        numbers = [
            str(argument.type) == "Tensor" and not isinstance(value, Tensor)
            for argument, value in zip(op._schema.arguments, args, strict=False)
        ]
        return (op.overloadpacket if any(numbers) else op)(*args, **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        given: list[tuple[Tensor, Tensor]] = []
        device = torch.device("cuda", torch.cuda.current_device())

        def to_host(value: Any) -> Any:
            nonlocal device
            if isinstance(value, Tensor) and value.is_cuda:
                device = value.device
                given.append((shared(value), value))
                return given[-1][0]
            if isinstance(value, torch.device) and value.type == "cuda":
                device = value
                return torch.device("cpu")
            if isinstance(value, torch.Generator) and value.device.type == "cuda":
                return torch.Generator().manual_seed(value.initial_seed())
            return value

        args, kwargs = tree_map(to_host, (args, kwargs))
        capturing = torch.cuda.is_current_stream_capturing()
        # A capture changes nothing, so what an op in place writes is put back.
        before = (
            [(host, host.clone()) for host, _ in given]
            if capturing and op._schema.is_mutable
            else []
        )
        result = call(*args, **kwargs)
        resized: list[tuple[Tensor, Tensor]] = []
        for host, value in given:
            if host.shape != value.shape:  # an `out` that was resized
                value.resize_(host.shape)
                resized.append((shared(value), host))
                resized[-1][0].copy_(host)
        made: list[Tensor] = []

        def to_device(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            for host, argument in given:
                if value is host:
                    return argument
            made.append(on_device(value, device))
            return made[-1]

        answer = tree_map(to_device, result)
        with torch.no_grad():
            for host, old in before:
                if host.shape == old.shape:  # not an `out` that was resized
                    host.copy_(old)
        if capturing:
            results = [shared(t) for t in made]
            hosts = [host for host, _ in given]
            record(lambda: replay(call, args, kwargs, hosts, results, resized))
        return answer

    return run


def replay(
    op: Callable[..., Any],
    args: Any,
    kwargs: Any,
    given: list[Tensor],
    results: list[Tensor],
    resized: list[tuple[Tensor, Tensor]],
) -> None:
    """Run the op again, into the memory of its first results."""
    place = iter(results)

    def put(value: Any) -> Any:
        if isinstance(value, Tensor) and not any(value is host for host in given):
            next(place).copy_(value)
        return value

    with torch.no_grad():
        tree_map(put, op(*args, **kwargs))
        for target, host in resized:
            target.copy_(host)


def record(work: Callable[[], None]) -> None:
    call = CALL(work)
    RECORDED.append(call)
    stream = torch.cuda.current_stream().cuda_stream
    RUNTIME.rehearsal_enqueue(ctypes.c_void_p(stream), call)


def pytest_configure() -> None:
    """Move every op that has a CUDA kernel to the host."""
    torch.cuda.init()
    torch.backends.cudnn.enabled = False
    library = torch.library.Library("aten", "IMPL")
    RECORDED.append(library)
    names = torch._C._dispatch_get_registrations_for_dispatch_key("CUDA")
    for name in [*names, "aten::copy_"]:
        space, _, short = name.partition("::")
        if space == "aten" and short not in NATIVE:
            packet, _, overload = short.partition(".")
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about existing kernels
                library.impl(short, host_op(op), "CUDA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(word in item.nodeid for word in NOT_HERE):
            item.add_marker(pytest.mark.skip(reason="needs a GPU: not part of the rehearsal"))
