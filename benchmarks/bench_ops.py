"""Times each op against PyTorch: eager, and compiled.

    pytest benchmarks/bench_ops.py

Every result is verified before it is timed.  An op that does little arithmetic cannot be faster
than memory: extra_info has the bytes that it must move per second and their share of what a copy of
as many bytes reaches on the same machine (`share_of_copy`).  Those times are warm;
`cold_ms` is after a buffer larger than every cache was written.
"""

import statistics
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import espan_kernels
from espan_kernels import backends, gate, reference
from espan_kernels._features import to_nchw

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
# ESPAN's 32 channels at 256x256 and at 510x339, the typical DIV2K low-resolution image.
SHAPES = [(1, 32, 256, 256), (1, 32, 339, 510)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IMPLEMENTATIONS = ["espan", "eager", "compiled"] + ["triton"] * torch.cuda.is_available()


def implementation(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    if name == "compiled":
        torch._dynamo.reset()  # or the ninth kind of input in one process would be refused
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
    """Bytes read and written per second by the best of many copies that move ``size`` bytes."""
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
    """Median milliseconds after 256 MB were written, more than the caches of a CPU or GPU hold."""
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
    if benchmark.disabled:  # --benchmark-disable: verified and run once, not timed
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
    if name != "eager":  # which in 16 bits is itself less accurate than this asks for
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


# ESPAN's: 32 channels, a 9x9 head, x4.
CHANNELS, KERNEL, SCALE = 32, 9, 4
SIZES = [(128, 128), (256, 256)]
# On random data one layer by Winograd has 11 times the error of a direct one.
WINOGRAD = 16


def layers(
    op: str, size: tuple[int, int], dtype: torch.dtype, device: str
) -> tuple[Callable[[], Tensor], Callable[[torch.dtype], Tensor]]:
    """The op, and its reference in a dtype, on the same random weights and input."""
    torch.manual_seed(0)
    c, rows = CHANNELS, 3 * SCALE * SCALE

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape)).to(device, dtype)

    def weight(outputs: int, inputs: int, kernel: int) -> Tensor:
        return random(outputs, inputs, kernel, kernel, scale=(inputs * kernel * kernel) ** -0.5)

    maps = [random(1, *size, c) for _ in range(3)]
    views = [to_nchw(t, c) for t in maps]
    if op == "head":
        parameters = weight(c, 3, KERNEL), random(c)
        image = torch.rand(1, 3, *size).to(device, dtype)
        packed = espan_kernels.pack_head(*parameters, dtype, device)
        return (
            lambda: to_nchw(espan_kernels.head(image, packed, None, c, KERNEL), c),
            lambda d: reference.head(image.to(d), *(t.to(d) for t in parameters), None),
        )
    if op == "spab":
        weights, biases = [weight(c, c, 3) for _ in range(3)], [random(c) for _ in range(3)]
        packed = espan_kernels.pack_spab(weights, biases, dtype, device)
        return (
            lambda: to_nchw(espan_kernels.spab(maps[0], packed, c, 3)[0], c),
            lambda d: reference.spab(
                views[0].to(d), [t.to(d) for t in weights], [t.to(d) for t in biases]
            )[0],
        )
    tail_weights = weight(c, c, 3), weight(c, 2 * c, 1), random(c), weight(rows, c, 3), random(rows)
    packed = espan_kernels.pack_tail(*tail_weights, dtype, device)
    return (
        lambda: espan_kernels.tail(*maps, None, packed, c, SCALE, dtype),
        lambda d: reference.tail(
            views[2].to(d), [v.to(d) for v in views[:2]], *(t.to(d) for t in tail_weights), SCALE
        ),
    )


@pytest.mark.parametrize("name", ["espan", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[1]}x{s[0]}")
@pytest.mark.parametrize("op", ["head", "spab", "tail"])
def test_layers_on_the_cpu(
    benchmark: BenchmarkFixture, op: str, size: tuple[int, int], dtype: torch.dtype, name: str
) -> None:
    run, eager = layers(op, size, dtype, "cpu")
    benchmark.group = f"{op} cpu {size[1]}x{size[0]} {dtype}"
    exact, plain = eager(torch.float64), eager(dtype)
    allowed = WINOGRAD * (plain - exact).abs().max() + torch.finfo(dtype).eps * exact.abs().max()
    assert (run() - exact).abs().max() <= allowed
    moved = 2 * exact.numel() * dtype.itemsize
    measure(benchmark, run if name == "espan" else lambda: eager(dtype), "cpu", moved, rounds=15)
