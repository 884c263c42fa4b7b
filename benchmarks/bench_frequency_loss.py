"""Times the frequency-aware loss and its gradient against plain PyTorch, eager and compiled.

    pytest benchmarks/bench_frequency_loss.py

The batch has the size of the training recipe.  The loss is scaled as by a GradScaler; otherwise
float16 would round most of the gradient to zero.  Every result is verified before it is timed.  At
least SR, HR and the gradient must be moved once each; `share_of_copy` refers to these bytes, even
where autograd moves more.
"""

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from benchmarks.bench_ops import DEVICES, DTYPES, measure
from espan_kernels import frequency_loss, frequency_loss_gradient, reference

SHAPE = (16, 3, 512, 512)
SCALE = 65536.0
IMPLEMENTATIONS = ["one pass", "autograd", "eager", "compiled"]
IMPLEMENTATIONS += ["triton"] * torch.cuda.is_available()

Step = Callable[[], Tensor]


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


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_loss_and_gradient(
    benchmark: BenchmarkFixture, device: str, dtype: torch.dtype, name: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    hr, noise = (torch.rand(SHAPE, generator=generator).to(device) for _ in range(2))
    sr, hr = (hr + 0.1 * noise).to(dtype), hr.to(dtype)
    step = implementation(name, sr, hr)
    benchmark.group = f"frequency loss {device} {'x'.join(map(str, SHAPE))} {dtype}"
    scale = torch.tensor(SCALE, device=device)
    exact = reference.frequency_loss_gradient(sr.float(), hr.float(), scale)[2]
    # Some of the 25 million signs are of values that would be zero but for rounding.
    wrong = (step().float() - exact).abs() > 0.02 * SCALE / sr.numel()
    assert wrong.float().mean() < 1e-3
    # On a CPU, plain PyTorch takes seconds per round.
    measure(benchmark, step, device, 3 * sr.nbytes, rounds=50 if device == "cuda" else 3)
