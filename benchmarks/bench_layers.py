"""Times the parts of ESPAN (head, block and tail) on a GPU, against PyTorch.

    pytest benchmarks/bench_layers.py

Each result is verified.  Then 20 calls in a CUDA graph are timed, so no time of the CPU is included
and, up to 510x339, the data stay in the L2 of a large GPU.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.bench_model import DEVICE, DIV2K, GPU, SIZES, product_rate
from benchmarks.gpu_timing import clock_per_call, graphed, measure
from espan_kernels import head, pack_head, pack_spab, pack_tail, reference, spab, tail

C, HEAD, SCALE = 32, 9, 4
# Multiply-adds per pixel.
MACS = {
    "head": 3 * HEAD * HEAD * C,
    "spab": 3 * 9 * C * C,
    "tail": C * (9 * C + 2 * C + 9 * 3 * SCALE * SCALE),
}
F32, F16 = torch.float32, torch.float16
PYTORCH = ["eager fp32", "eager fp16", "compiled fp16"]

pytestmark = pytest.mark.skipif(not GPU, reason="times kernels on an NVIDIA GPU")

Run = Callable[[], Tensor]


@cache
def weights_of(part: str) -> list[Tensor]:
    """Weights of about unit gain, in the order of the packing functions' arguments."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        fan_in = torch.Size(shape[1:]).numel() if len(shape) > 1 else 25
        return torch.randn(shape, generator=generator) / fan_in**0.5

    if part == "head":
        return [random(C, 3, HEAD, HEAD), random(C)]
    if part == "spab":
        return [random(C, C, 3, 3) for _ in range(3)] + [random(C) for _ in range(3)]
    rows = 3 * SCALE * SCALE
    shapes = ((C, C, 3, 3), (C, 2 * C, 1, 1), (C,), (rows, C, 3, 3), (rows,))
    return [random(*shape) for shape in shapes]


def plain_part(part: str, weights: list[Tensor], maps: list[Tensor]) -> Tensor:
    """The part in plain PyTorch."""
    if part == "head":
        return reference.head(maps[0], weights[0], weights[1], None)
    if part == "spab":
        return reference.spab(maps[0], weights[:3], weights[3:])[0]
    return reference.tail(maps[0], maps[1:], *weights, SCALE)


def inputs(part: str, size: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    channels, count = {"head": (3, 1), "spab": (C, 1), "tail": (C, 3)}[part]
    return [
        torch.rand(1, channels, *size, generator=generator)
        .to(DEVICE, dtype)
        .contiguous(memory_format=torch.channels_last)
        for _ in range(count)
    ]


def pytorch_part(name: str, part: str, size: tuple[int, int]) -> Run:
    how, precision = name.split()
    dtype = {"fp32": F32, "fp16": F16}[precision]
    maps = inputs(part, size, dtype)
    weights = [w.to(DEVICE, dtype) for w in weights_of(part)]
    weights = [
        w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w for w in weights
    ]
    if how == "compiled":
        torch._dynamo.reset()
        mode = "max-autotune-no-cudagraphs"  # they all run in the graph of this benchmark
        compiled = torch.compile(plain_part, mode=mode, dynamic=False)
        return lambda: compiled(part, weights, maps)
    return lambda: plain_part(part, weights, maps)


def espan_part(name: str, part: str, size: tuple[int, int]) -> Run:
    """The espan op, with its result as (N, C, H, W)."""
    maps = [m.permute(0, 2, 3, 1) for m in inputs(part, size, F16)]  # P = C
    weights = weights_of(part)
    ops = {"head": head, "spab": spab, "tail": tail}
    if name == "triton":
        from espan_kernels.triton import head as h
        from espan_kernels.triton import spab as s
        from espan_kernels.triton import tail as t

        ops = {"head": h.head, "spab": s.spab, "tail": t.tail}
    op = ops[part]
    if part == "head":
        packed = pack_head(*weights, F16, DEVICE)
        image = maps[0].permute(0, 3, 1, 2)
        return lambda: op(image, packed, None, C, HEAD).permute(0, 3, 1, 2)
    if part == "spab":
        packed = pack_spab(weights[:3], weights[3:], F16, DEVICE)
        return lambda: op(maps[0], packed, C, 3, False)[0].permute(0, 3, 1, 2)
    packed = pack_tail(*weights, F16, DEVICE)
    last, first, second = maps
    return lambda: op(first, second, last, None, packed, C, SCALE, F16, None)


def verify(part: str, run: Callable[..., Run], name: str) -> None:
    size = (21, 34)
    exact = plain_part(
        part,
        [w.double() for w in weights_of(part)],
        [m.double().cpu() for m in inputs(part, size, F16)],
    )
    error = (run(name, part, size)().cpu() - exact).abs().max() / exact.abs().max()
    assert error < 4e-3, f"the error is {error:.2g} of the largest value"


@pytest.mark.benchmark(timer=clock_per_call)
@pytest.mark.parametrize("name", [*PYTORCH, "espan", "triton"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[1]}x{s[0]}")
@pytest.mark.parametrize("part", MACS)
def test_part(
    benchmark: BenchmarkFixture,
    part: str,
    size: tuple[int, int],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if size not in ((256, 256), DIV2K) and name.startswith("compiled"):
        pytest.skip("compiling is slow: 256x256 and 510x339 are enough")
    make = pytorch_part if name in PYTORCH else espan_part
    benchmark.group = f"{part} {DEVICE} {size[1]}x{size[0]}"
    with torch.inference_mode():
        verify(part, make, name)
        extra = measure(benchmark, graphed([make(name, part, size)]))
        dtype = F32 if name.endswith("fp32") else F16
        floor = MACS[part] * size[0] * size[1] / product_rate(dtype)
        benchmark.extra_info |= {
            "arithmetic": str(dtype),
            "floor_ms": round(1e3 * floor, 4),
            **extra,
        }
        if not benchmark.disabled:
            median = benchmark.stats.stats.median
            benchmark.extra_info["times_the_floor"] = round(median / floor, 2)
