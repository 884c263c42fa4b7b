"""Times the frequency-aware loss and its gradient against plain PyTorch, eager and compiled.

    pytest benchmarks/bench_frequency_loss.py

The batch has the size of the training recipe.  The loss is scaled as by a GradScaler; otherwise
float16 would round most of the gradient to zero.  Every result is verified before it is timed.  At
least SR, HR and the gradient must be moved once each; `share_of_copy` refers to these bytes, even
where autograd moves more.

On a GPU, calls take turns with four pairs of images, which do not fit into its L2; espan's kernels
run in a CUDA graph; and the copy is an addition, which reads two arrays and writes a third.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks import bench_ops, gpu_timing
from benchmarks.bench_ops import DTYPES
from espan_kernels import frequency_loss, frequency_loss_gradient, reference

SHAPE = (16, 3, 512, 512)
SCALE = 65536.0
PAIRS = 4

Step = Callable[[], Tensor]


def images(device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """SR and HR."""
    generator = torch.Generator(device).manual_seed(0)
    hr, noise = (torch.rand(SHAPE, generator=generator, device=device) for _ in range(2))
    return (hr + 0.1 * noise).to(dtype), hr.to(dtype)


def through_autograd(
    function: Callable[..., tuple[Tensor, Tensor]], sr: Tensor, hr: Tensor
) -> Step:
    leaf, scale = sr.clone().requires_grad_(), torch.tensor(SCALE, device=sr.device)
    return lambda: torch.autograd.grad(function(leaf, hr)[0], leaf, scale)[0]


def implementation(name: str, sr: Tensor, hr: Tensor) -> Step:
    """A function that computes the loss and returns its gradient."""
    scale = torch.tensor(SCALE, device=sr.device)
    if name == "one pass":
        return lambda: frequency_loss_gradient(sr, hr, scale)[2]
    if name == "triton":
        from espan_kernels.triton.frequency_loss import frequency_loss_gradient as kernel

        return lambda: kernel(sr, hr, scale, 1.0, 1.0, 0.001, True)[2]
    if name == "compiled":
        torch._dynamo.reset()
        return through_autograd(torch.compile(reference.frequency_loss, dynamic=False), sr, hr)
    return through_autograd(
        frequency_loss if name == "autograd" else reference.frequency_loss, sr, hr
    )


def verify(step: Step, sr: Tensor, hr: Tensor) -> None:
    scale = torch.tensor(SCALE, device=sr.device)
    exact = reference.frequency_loss_gradient(sr.float(), hr.float(), scale)[2]
    # Some of the 25 million signs are of values that would be zero but for rounding.
    wrong = (step().float() - exact).abs() > 0.02 * SCALE / sr.numel()
    assert wrong.float().mean() < 1e-3


def group(device: str, dtype: torch.dtype) -> str:
    return f"frequency loss {device} {'x'.join(map(str, SHAPE))} {dtype}"


@pytest.mark.parametrize("name", ["one pass", "autograd", "eager", "compiled"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_the_cpu(benchmark: BenchmarkFixture, dtype: torch.dtype, name: str) -> None:
    sr, hr = images("cpu", dtype)
    step = implementation(name, sr, hr)
    verify(step, sr, hr)
    benchmark.group = group("cpu", dtype)
    # Plain PyTorch takes seconds per round.
    bench_ops.measure(benchmark, step, "cpu", 3 * sr.nbytes, rounds=3)


@cache
def copy_seconds(dtype: torch.dtype) -> float:
    """The time of a copy; the fastest of five rounds."""
    sets = [(*images("cuda", dtype), torch.empty(SHAPE, dtype=dtype, device="cuda"))] * PAIRS
    sets = [(a.clone(), b.clone(), c.clone()) for a, b, c in sets]
    replay = gpu_timing.graphed([lambda s=s: torch.add(s[0], s[1], out=s[2]) for s in sets])
    times = []
    for _ in range(6):
        start = gpu_timing.clock_per_call()
        replay()
        times.append(gpu_timing.clock_per_call() - start)
    return min(times[1:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU")
@pytest.mark.benchmark(timer=gpu_timing.clock_per_call)
@pytest.mark.parametrize("name", ["one pass", "triton", "autograd", "eager", "compiled"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_gpu(benchmark: BenchmarkFixture, dtype: torch.dtype, name: str) -> None:
    sr, hr = images("cuda", dtype)
    step = implementation(name, sr, hr)
    verify(step, sr, hr)
    benchmark.group = group("cuda", dtype)
    if name in ("one pass", "triton"):
        pairs = [(sr.clone(), hr.clone()) for _ in range(PAIRS)]
        run = gpu_timing.graphed([implementation(name, *pair) for pair in pairs])
    else:
        run = gpu_timing.back_to_back([step])
    extra = gpu_timing.measure(benchmark, run)
    if not benchmark.disabled:
        copy = copy_seconds(dtype)
        share = copy / benchmark.stats.stats.median
        extra |= {"copy_ms": round(1e3 * copy, 5), "share_of_copy": round(share, 3)}
    benchmark.extra_info |= extra
