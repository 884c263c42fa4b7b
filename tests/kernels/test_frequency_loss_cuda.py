"""The compiled and the Triton kernels of the frequency-aware loss.  Needs an NVIDIA GPU."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import backends, reference
from tests.kernels import frequency_loss_cases as cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU is visible to torch"),
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
OPTIONS = tuple(cases.OPTIONS[1].values())


@pytest.fixture(params=["cuda", "triton"])
def ops(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The ops of one backend."""
    backend = backends.available()[request.param]
    if not backend.available:
        pytest.skip(backend.reason)
    if backend.name == "cuda":
        return torch.ops.espan
    import espan_kernels.triton.frequency_loss  # noqa: F401

    return torch.ops.espan_triton


@pytest.mark.parametrize("dtype", FLOATS)
def test_values_and_gradients(ops: SimpleNamespace, dtype: torch.dtype) -> None:
    for shape in (*cases.SHAPES, (2, 1, 72, 144), (1, 1, 40, 264)):
        sr, hr = cases.inputs(*shape, dtype=dtype, device="cuda")
        for squared in (True, False):
            cases.check(ops.frequency_loss_gradient, sr, hr, 3.0, squared=squared)


def test_misaligned_and_strided(ops: SimpleNamespace) -> None:
    sr, hr = cases.inputs(2, 3, 24, 32, dtype=torch.float16, device="cuda")
    last = torch.channels_last
    cases.check(ops.frequency_loss_gradient, sr.to(memory_format=last), hr)
    buffer = torch.full((sr.numel() + 1,), float("nan"), dtype=sr.dtype, device="cuda")
    shifted = buffer[1:].view(sr.shape).copy_(sr)
    cases.check(ops.frequency_loss_gradient, shifted, hr)
    cases.check(ops.frequency_loss_gradient, hr, shifted.to(memory_format=last))


def test_not_finite(ops: SimpleNamespace) -> None:
    for width in (40, 41):
        sr, hr = cases.inputs(1, 2, 40, width, device="cuda")
        sr[0, 1, 20, 30] = float("nan")
        one = torch.ones((), device="cuda")
        expected = reference.frequency_loss_gradient(sr, hr, one, *OPTIONS)
        actual = ops.frequency_loss_gradient(sr, hr, one, *OPTIONS)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a.isnan(), b.isnan())


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_training_batch_is_reproducible(ops: SimpleNamespace, dtype: torch.dtype) -> None:
    """The batch size of the recipe, with a GradScaler's scale; both runs give the same bits."""
    generator = torch.Generator("cuda").manual_seed(0)
    hr, noise = (torch.rand(16, 3, 512, 512, device="cuda", generator=generator) for _ in range(2))
    sr, hr = (hr + 0.1 * noise).to(dtype), hr.to(dtype)
    scale = torch.tensor(65536.0, device="cuda")
    first, again = (ops.frequency_loss_gradient(sr, hr, scale, *OPTIONS) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    exact = reference.frequency_loss_gradient(sr.double(), hr.double(), scale, *OPTIONS)
    torch.testing.assert_close(first[1].double(), exact[1], rtol=1e-6, atol=0)
    error = (first[2].double() - exact[2]).abs()
    # Some of the 25 million signs are of values that would be zero but for rounding.
    allowed = torch.finfo(dtype).eps * exact[2].abs().max()
    assert (error <= allowed).double().mean() > 0.999


def by_autograd(run: Callable[..., tuple[Tensor, Tensor]]) -> cases.LossGradient:
    """The loss, its terms and ``scale`` times its gradient."""

    def gradient(sr: Tensor, hr: Tensor, scale: Tensor, *options: float) -> tuple[Tensor, ...]:
        leaf = sr.clone().requires_grad_()
        loss, terms = run(leaf, hr, *options)
        (scale * loss).backward()
        assert leaf.grad is not None
        return loss.detach(), terms, leaf.grad

    return gradient


@pytest.mark.parametrize("size", [(17, 20), (24, 136)])
def test_autograd_and_compile(ops: SimpleNamespace, size: tuple[int, int]) -> None:
    sr, hr = cases.inputs(1, 3, *size, dtype=torch.float16, device="cuda")

    def run(*arguments: Any) -> tuple[Tensor, Tensor]:
        return ops.frequency_loss(*arguments)

    cases.check(by_autograd(run), sr, hr, 3.0)
    cases.check(by_autograd(torch.compile(run, fullgraph=True)), sr, hr, 3.0)


def test_current_stream_and_graph(ops: SimpleNamespace) -> None:
    sr, hr = cases.inputs(2, 3, 40, 48, device="cuda")
    one = torch.ones((), device="cuda")
    expected = ops.frequency_loss_gradient(sr, hr, one, *OPTIONS)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late = sr * 1  # still pending on this stream: the loss must wait for it
        found = ops.frequency_loss_gradient(late, hr, one, *OPTIONS)
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.frequency_loss_gradient(sr, hr, one, *OPTIONS)
    for t in captured:
        t.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device(ops: SimpleNamespace) -> None:
    sr, hr = cases.inputs(1, 1, 9, 17, device="cuda:1")
    cases.check(ops.frequency_loss_gradient, sr, hr)
    assert torch.cuda.current_device() == 0


def test_bad_inputs() -> None:
    image = torch.zeros(1, 3, 8, 8, device="cuda")
    with pytest.raises(RuntimeError, match="hr is on cpu; it must be on the device of sr, cuda:0"):
        torch.ops.espan.frequency_loss(image, image.cpu(), *OPTIONS)
    with pytest.raises(RuntimeError, match=r"scale is on cpu; it must be on the device of sr"):
        torch.ops.espan.frequency_loss_gradient(image, image, torch.ones(()), *OPTIONS)
