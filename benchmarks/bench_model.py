"""Times whole networks against the alternatives that a user has.

    pytest benchmarks/bench_model.py

Every result is verified against the plain network in fp32 before it is timed.  extra_info has:

* `image`, `arithmetic`: the dtypes.
* `cold_ms`: the time of the first call at that size; all other times are warm.
* `floor_ms`: the time for the network's multiply-adds at the rate of a large matrix product in the
  same dtype on the same machine; `times_the_floor`: the time as a multiple of it.
* `replay_ms`: the time of the CUDA graph alone; a call also copies the image in and the result out.
* `sm_mhz`, on a GPU: its clock after the measurement; `cycles`: the time in cycles of that clock.
* `peak_MB_beyond_output`, on a GPU: the peak memory beyond weights, input and output.
"""

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import espan
from benchmarks.gpu_timing import clock, cycles, milliseconds
from espan.engines.graphs import Graphed
from espan.fused import FusedNetwork
from espan.models import ESPAN, SPAN, Architecture, Network, architecture_from_name, complexity
from espan_kernels import reference

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
# (height, width) of the LR image; 339x510 is typical of DIV2K at x4.
SIZES = [(128, 128), (256, 256), (339, 510), (720, 1280), (1080, 1920)]
DIV2K = (339, 510)
# Tab. 2 (3x3 and 9x9 heads) and Tab. 4 (channels and depth) of the paper.
TABLE_ARCHITECTURES = [
    "c32d5",
    "c32d5k9",
    "span",
    "c24d6",
    "c24d7",
    "c22d7",
    "c22d8",
    "c28d5",
    "c30d5",
]


@dataclass(frozen=True)
class Variant:
    """One way to run a network.  `make` returns a function of an image batch, in 0-1 or uint8."""

    image: torch.dtype
    arithmetic: torch.dtype
    make: Callable[[Network], Callable[[Tensor], Tensor]]
    tf32: bool = False


def _plain(network: Network, dtype: torch.dtype = torch.float32) -> Network:
    return copy.deepcopy(network).to(DEVICE, dtype)


def _channels_last(network: Network, dtype: torch.dtype) -> Network:
    return _plain(network, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _official(network: Network) -> Network:
    """The network as timed in the challenge: fp32, the gate as a generated pointwise kernel."""
    official = _plain(network)
    gate = torch.compile(reference.gate)
    for block in official.blocks:
        block.gate = gate
    return official


def _fused(
    network: Network, dtype: torch.dtype, *, graph: bool = False, backend: str = "auto"
) -> FusedNetwork:
    return FusedNetwork(network, device=DEVICE, dtype=dtype, graph=graph, backend=backend)


def _graphed(network: Network, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    run = Graphed(_IgnoringFlag(_channels_last(network, dtype)))
    flag = torch.zeros(1, device=DEVICE)
    return lambda x: run(x, flag)


class _IgnoringFlag(torch.nn.Module):
    """A network with the interface of an engine, which ignores the flag."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        return self.network(x)


def _autotuned(network: Network, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    torch._dynamo.reset()
    mode = "max-autotune" if GPU else "default"
    return torch.compile(_channels_last(network, dtype), mode=mode, dynamic=False)


F32, F16, U8 = torch.float32, torch.float16, torch.uint8
VARIANTS = {
    "eager fp32": Variant(F32, F32, _plain),
    "compiled fp32": Variant(F32, F32, lambda n: _autotuned(n, F32)),
    "espan fp32": Variant(F32, F32, lambda n: _fused(n, F32)),
    "espan bytes": Variant(U8, F16 if GPU else F32, lambda n: _fused(n, F16 if GPU else F32)),
}
if GPU:
    VARIANTS |= {
        "official": Variant(F32, F32, _official),
        "eager TF32": Variant(F32, F32, _plain, tf32=True),
        "eager fp16 channels-last": Variant(F16, F16, lambda n: _channels_last(n, F16)),
        "graphed fp16 channels-last": Variant(F16, F16, lambda n: _graphed(n, F16)),
        "compiled fp16 channels-last": Variant(F16, F16, lambda n: _autotuned(n, F16)),
        "espan fp16": Variant(F16, F16, lambda n: _fused(n, F16)),
        "espan fp16 graphed": Variant(F16, F16, lambda n: _fused(n, F16, graph=True)),
        "espan Triton fp16 graphed": Variant(
            F16, F16, lambda n: _fused(n, F16, graph=True, backend="triton")
        ),
        "espan bytes graphed": Variant(U8, F16, lambda n: _fused(n, F16, graph=True)),
        "espan.Upscaler graphed": Variant(U8, F16, lambda n: espan.Upscaler(n, graph=True)),
    }
# The members of the family that are timed beside ESPAN.
FAMILY = ["spanv2", "spanf3_b5f48", "spanf3_b8f64"]
FAMILY_VARIANTS = [
    "eager fp32",
    *(
        ["compiled fp16 channels-last", "espan Triton fp16 graphed", "espan fp16 graphed"]
        if GPU
        else ["compiled fp32"]
    ),
    "espan bytes graphed" if GPU else "espan bytes",
]
# Compiling for one size takes a minute.
SLOW_TO_COMPILE = ("compiled fp32", "compiled fp16 channels-last")
COMPILED_FOR = [(256, 256), DIV2K, (1080, 1920)]


@cache
def network_of(architecture: Architecture) -> Network:
    """The bundled weights for ESPAN, random weights for other architectures."""
    if architecture == ESPAN:
        return espan.load()
    torch.manual_seed(0)
    return Network(architecture).eval().requires_grad_(False)


@cache
def product_rate(dtype: torch.dtype) -> float:
    """Multiply-adds per second in the fastest of 8 matrix products of size 8192 (CPU: 2048)."""
    n = 8192 if GPU else 2048
    a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = clock()
        torch.mm(a, b)
        best = min(best, clock() - start)
    return n**3 / best


def image_of(size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """A random image, smooth like a photograph."""
    coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1).to(DEVICE)
    return (image * 255).round().to(U8) if dtype == U8 else image.to(dtype)


def verify(network: Network, variant: Variant, run: Callable[[Tensor], Tensor]) -> None:
    """Compare with the plain network in fp32 without TF32, on a small image.

    The error must be 50 dB below the largest value; for uint8, within one step.
    """
    x = image_of((40, 52), variant.image)
    if variant.image == U8:
        exact = _plain(network)(x.float() / 255).clamp(0, 1)
        result, allowed = run(x).float() / 255, (1 / 255) ** 2
    else:
        exact = _plain(network)(x.float())
        result, allowed = run(x).float(), 1e-5 * exact.abs().max().item() ** 2
    error = (result - exact).square().mean().item()
    assert error <= allowed, f"mean square error {error:.3g}, at most {allowed:.3g} allowed"


@pytest.fixture
def tf32_off(request: pytest.FixtureRequest):
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


def measure(
    benchmark: BenchmarkFixture, architecture: Architecture, size: tuple[int, int], variant: Variant
) -> None:
    network = network_of(architecture)
    with torch.inference_mode():
        run = variant.make(network)
        verify(network, variant, run)
        torch.backends.cudnn.allow_tf32 = variant.tf32
        x = image_of(size, variant.image)
        # The first call at this size, including compilation and graph capture.
        start = clock()
        run(x)
        benchmark.extra_info["cold_ms"] = round(1e3 * (clock() - start), 3)
        for _ in range(2):
            run(x)
        if GPU:
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            y = run(x)
            beyond = torch.cuda.max_memory_allocated() - held - y.nbytes
            benchmark.extra_info["peak_MB_beyond_output"] = round(beyond / 1e6, 2)
        # A GPU queues launches, so time many calls at once.
        start = clock()
        run(x)
        once = clock() - start
        iterations = max(1, min(50, int(0.01 / once))) if GPU else 1
        rounds = max(5, min(20, int((0.5 if GPU else 2) / (once * iterations))))
        benchmark.pedantic(run, (x,), iterations=iterations, rounds=rounds, warmup_rounds=1)
        if GPU and not benchmark.disabled:
            benchmark.extra_info |= cycles(benchmark.stats.stats.median, lambda: run(x))
        if isinstance(run, FusedNetwork) and isinstance(run.engine, Graphed):
            graph, *_ = next(reversed(run.engine._graphs.values()))
            benchmark.extra_info["replay_ms"] = milliseconds(graph.replay)
    floor = complexity(architecture, *size).macs / product_rate(variant.arithmetic)
    benchmark.extra_info |= {
        "image": str(variant.image),
        "arithmetic": str(variant.arithmetic) + (" as TF32" if variant.tf32 else ""),
        "floor_ms": round(1e3 * floor, 4),
    }
    if not benchmark.disabled:
        times = benchmark.stats.stats
        benchmark.extra_info["times_the_floor"] = round(times.median / floor, 2)


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[1]}x{s[0]}")
def test_espan(benchmark: BenchmarkFixture, size: tuple[int, int], name: str, tf32_off) -> None:
    if not GPU and size not in ((256, 256), DIV2K):
        pytest.skip("on the CPU, 256x256 and 510x339 are enough")
    if name in SLOW_TO_COMPILE and size not in COMPILED_FOR:
        pytest.skip("compiling is slow")
    benchmark.group = f"ESPAN {DEVICE} {size[1]}x{size[0]}"
    measure(benchmark, ESPAN, size, VARIANTS[name])


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("name", ["eager fp32", "espan bytes graphed" if GPU else "espan bytes"])
@pytest.mark.parametrize("architecture", TABLE_ARCHITECTURES)
def test_tables(benchmark: BenchmarkFixture, architecture: str, name: str, tf32_off) -> None:
    benchmark.group = f"Tab. 2 and 4 {DEVICE} 256x256 {architecture}"
    measure(benchmark, architecture_from_name(architecture), (256, 256), VARIANTS[name])


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("name", FAMILY_VARIANTS)
@pytest.mark.parametrize("size", [(256, 256), (1080, 1920)], ids=lambda s: f"{s[1]}x{s[0]}")
@pytest.mark.parametrize("architecture", FAMILY)
def test_family(
    benchmark: BenchmarkFixture, architecture: str, size: tuple[int, int], name: str, tf32_off
) -> None:
    benchmark.group = f"{architecture} {DEVICE} {size[1]}x{size[0]}"
    measure(benchmark, architecture_from_name(architecture), size, VARIANTS[name])


@pytest.mark.skipif(not GPU, reason="the challenge's protocol times a GPU")
@pytest.mark.parametrize(
    "name",
    ["official", "eager fp32", "eager TF32", "espan fp16", "espan bytes", "espan bytes graphed"],
)
def test_challenge(benchmark: BenchmarkFixture, name: str, tf32_off) -> None:
    """The timing protocol of the challenge: batch 1, each image between two CUDA events."""
    variant = VARIANTS[name]
    run = variant.make(network_of(ESPAN))
    x = image_of(DIV2K, variant.image)
    benchmark.group = "challenge 510x339"
    with torch.inference_mode():
        verify(network_of(ESPAN), variant, run)
        torch.backends.cudnn.allow_tf32 = variant.tf32
        for _ in range(5):
            run(x)
        times = [_between_events(run, x) for _ in range(100)]
        benchmark.pedantic(run, (x,), iterations=1, rounds=1)  # adds a row to the report
    benchmark.extra_info |= {
        "image": str(variant.image),
        "arithmetic": str(variant.arithmetic) + (" as TF32" if variant.tf32 else ""),
        "mean_ms_between_events": round(statistics.mean(times), 4),
        "median_ms_between_events": round(statistics.median(times), 4),
    }


def _between_events(run: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """The milliseconds that one image takes on the GPU."""
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run(x)
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after)


@pytest.mark.skipif(not GPU, reason="on a CPU, images are computed one after the other")
@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("size", [(256, 256), DIV2K, (1080, 1920)], ids=lambda s: f"{s[1]}x{s[0]}")
def test_list(benchmark: BenchmarkFixture, size: tuple[int, int], tf32_off) -> None:
    """16 images at a time, which `Upscaler` puts into as few calls as the memory limit allows."""
    benchmark.group = f"16 images {size[1]}x{size[0]}"
    upscaler = espan.Upscaler(network_of(ESPAN), graph=True)
    images = list(image_of(size, U8).expand(16, -1, -1, -1).clone())
    with torch.inference_mode():
        verify(network_of(ESPAN), VARIANTS["espan bytes"], lambda x: upscaler([*x, *x])[0][None])
        benchmark.pedantic(upscaler, (images,), iterations=1, rounds=10, warmup_rounds=2)
    if not benchmark.disabled:
        per_image = benchmark.stats.stats.median / len(images)
        benchmark.extra_info["ms_per_image"] = round(1e3 * per_image, 4)


@pytest.mark.benchmark(timer=clock)
def test_span_c48(benchmark: BenchmarkFixture, tf32_off) -> None:
    benchmark.group = f"SPAN c48 {DEVICE} 256x256"
    measure(benchmark, SPAN.replace(channels=48), (256, 256), VARIANTS["espan bytes"])
