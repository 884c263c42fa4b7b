"""Times each op against PyTorch, eager and compiled.

    pytest benchmarks/bench_ops.py

Every result is verified before it is timed.  An op with little arithmetic is limited by memory
bandwidth.  extra_info has its bandwidth (`GB_per_s`: the bytes that it must move, per second) and
the ratio to the bandwidth of a copy of as many bytes on the same machine (`share_of_copy`).  These
times are warm; `cold_ms` is measured after writing a buffer larger than every cache.
"""

import statistics
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from espan_kernels import backends, conv3x3, gate, reference

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
# ESPAN's 32 channels at 256x256 and at 510x339, the typical DIV2K low-resolution image.
SHAPES = [(1, 32, 256, 256), (1, 32, 339, 510)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMPLEMENTATIONS = ["espan", "eager", "compiled"] + ["triton"] * torch.cuda.is_available()


def implementation(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "compiled":
        torch._dynamo.reset()  # Dynamo refuses to compile a function for a ninth kind of input
        return torch.compile(reference.gate, fullgraph=True, dynamic=False)
    if name == "triton":
        import espan_kernels.triton.gate  # noqa: F401

        return torch.ops.espan_triton.gate
    return gate if name == "espan" else reference.gate


def finished(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@cache
def copy_bandwidth(device: str, size: int) -> float:
    """Bytes read and written per second by the fastest of 30 copies that move ``size`` bytes."""
    source = torch.empty(size // 8).normal_().to(device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(30):
        finished(device)
        start = time.perf_counter()
        target.copy_(source)
        finished(device)
        best = min(best, time.perf_counter() - start)
    return 8 * source.numel() / best


def cold(run: Callable[[], object], device: str, rounds: int = 5) -> float:
    """Median milliseconds after writing 256 MB, more than the caches of a CPU or GPU hold."""
    buffer = torch.empty(2**26, device=device)
    times = []
    for _ in range(rounds):
        buffer.zero_()
        finished(device)
        start = time.perf_counter()
        run()
        finished(device)
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 4)


def measure(
    benchmark: BenchmarkFixture,
    run: Callable[[], object],
    device: str,
    size: int,
    rounds: int = 50,
) -> None:
    def timed() -> None:
        run()
        finished(device)

    benchmark.pedantic(timed, warmup_rounds=min(5, rounds), rounds=rounds)
    if benchmark.disabled:  # with --benchmark-disable: run once, not timed
        return
    rate = size / benchmark.stats.stats.median
    benchmark.extra_info["GB_per_s"] = round(rate / 1e9, 2)
    benchmark.extra_info["share_of_copy"] = round(rate / copy_bandwidth(device, size), 3)
    benchmark.extra_info["cold_ms"] = cold(run, device)
    benchmark.extra_info["backend"] = backends.choose(device)


def inputs(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    return tuple(torch.randn(shape).to(device, dtype) for _ in range(3))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[3]}x{s[2]}")
@pytest.mark.parametrize("device", DEVICES)
def test_gate_forward(
    benchmark: BenchmarkFixture, device: str, shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> None:
    _, o, x = inputs(shape, dtype, device)
    function = implementation(name)
    benchmark.group = f"gate forward {device} {shape[3]}x{shape[2]} {dtype}"
    if name != "eager":  # in 16 bits, eager is less accurate than this tolerance
        torch.testing.assert_close(function(o, x), reference.gate(o.double(), x.double()).to(dtype))
    measure(benchmark, lambda: function(o, x), device, 3 * o.nbytes)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[3]}x{s[2]}")
@pytest.mark.parametrize("device", DEVICES)
def test_gate_backward(
    benchmark: BenchmarkFixture, device: str, shape: tuple[int, ...], dtype: torch.dtype, name: str
) -> None:
    grad, o, x = inputs(shape, dtype, device)
    o.requires_grad_()
    x.requires_grad_()
    y = implementation(name)(o, x)
    benchmark.group = f"gate backward {device} {shape[3]}x{shape[2]} {dtype}"

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(y, (o, x), grad, retain_graph=True)

    exact = reference.gate_backward(grad.double(), o.double(), x.double())
    if name != "eager":
        torch.testing.assert_close(backward(), tuple(t.to(dtype) for t in exact))
    measure(benchmark, backward, device, 5 * o.nbytes)


@pytest.mark.parametrize("name", ["espan", "eager"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("shape", [(8, 32, 48, 48), (16, 32, 64, 64), (8, 48, 48, 48)], ids=str)
def test_conv3x3(
    benchmark: BenchmarkFixture, shape: tuple[int, ...], direction: str, name: str
) -> None:
    """A convolution of training batches in fp32 on the CPU, as many outputs as inputs."""
    torch.manual_seed(0)
    channels = shape[1]
    x, grad = (torch.randn(shape).to(memory_format=torch.channels_last) for _ in range(2))
    weight, bias = torch.randn(channels, channels, 3, 3), torch.randn(channels)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    function = conv3x3 if name == "espan" else reference.conv3x3
    y = function(*leaves)

    def run() -> Tensor | tuple[Tensor, ...]:
        if direction == "forward":
            return function(*leaves)
        return torch.autograd.grad(y, leaves, grad, retain_graph=True)

    exact = reference.conv3x3(*(t.double() for t in leaves))
    wanted: tuple[Tensor, ...] = (exact,)
    if direction == "backward":
        wanted = torch.autograd.grad(exact, leaves, grad.double())
    found = run()
    for one, other in zip((found,) if isinstance(found, Tensor) else found, wanted, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()
    benchmark.group = f"conv3x3 {direction} {shape}"
    measure(benchmark, run, "cpu", 2 * x.nbytes * (1 if direction == "forward" else 2))
    if not benchmark.disabled:
        operations = 2 * 9 * channels * x.numel() * (1 if direction == "forward" else 2)
        benchmark.extra_info["GFLOP_per_s"] = round(
            operations / benchmark.stats.stats.median / 1e9, 1
        )
