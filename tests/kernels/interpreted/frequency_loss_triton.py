"""The loss's Triton kernels on the CPU, in Triton's interpreter.

Not collected by itself: TRITON_INTERPRET must be set before Triton is imported, so
test_frequency_loss_triton.py runs this file in a process of its own.  The interpreter has no
bfloat16.
"""

import pytest
import torch

import espan_kernels.triton.frequency_loss  # noqa: F401  (defines torch.ops.espan_triton)
from espan_kernels import _library
from tests.kernels import frequency_loss_cases as cases

ops = torch.ops.espan_triton
OPTIONS = tuple(cases.OPTIONS[1].values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_and_gradients(dtype: torch.dtype) -> None:
    for i, shape in enumerate(cases.SHAPES):
        sr, hr = cases.inputs(*shape, dtype=dtype)
        cases.check(ops.frequency_loss_gradient, sr, hr, 3.0, squared=i % 2 == 0)


@pytest.mark.parametrize("options", cases.OPTIONS, ids=str)
def test_weights(options: dict[str, float]) -> None:
    sr, hr = cases.inputs(1, 1, 9, 17)
    cases.check(ops.frequency_loss_gradient, sr, hr, **options)


def test_layouts() -> None:
    sr, hr = cases.inputs(2, 3, 9, 12)
    last = torch.channels_last
    cases.check(ops.frequency_loss_gradient, sr.to(memory_format=last), hr)
    cases.check(ops.frequency_loss_gradient, sr[:, :, :, ::2], hr[:, :, :, ::2])


def test_nothing_outside_is_written_or_read() -> None:
    sr, hr = cases.inputs(1, 1, 9, 17)
    views = []
    for t in (sr, hr):
        buffer = torch.full((t.numel() + 200,), float("nan"))
        views.append(buffer[100:-100].view(t.shape).copy_(t))
    cases.check(ops.frequency_loss_gradient, *views)
    from espan_kernels.triton.frequency_loss import _run

    buffer = torch.full((sr.numel() + 200,), float("nan"))
    _run(*views, buffer[100:-100].view(sr.shape), torch.ones(()), *cases.OPTIONS[1].values())
    assert buffer.isnan().sum() == 200


def test_not_finite() -> None:
    """It comes through everywhere it should, and never leaves its plane."""
    sr, hr = cases.inputs(1, 2, 40, 41)
    sr[0, 1, 20, 30] = float("nan")
    loss, terms, grad = ops.frequency_loss_gradient(sr, hr, torch.ones(()), *OPTIONS)
    expected = cases.reference.frequency_loss_gradient(sr, hr, torch.ones(()), *OPTIONS)[2]
    assert loss.isnan()
    assert terms.isnan().all()
    assert grad[expected.isnan()].isnan().all()
    assert grad[0, 0].isfinite().all()


def test_gradient() -> None:
    sr, hr = cases.inputs(1, 1, 9, 10)
    expected = ops.frequency_loss_gradient(sr, hr, torch.tensor(3.0), *OPTIONS)
    sr.requires_grad_()
    loss, terms = ops.frequency_loss(sr, hr, *OPTIONS)
    assert torch.equal(loss, expected[0])
    assert torch.equal(terms, expected[1])
    (found,) = torch.autograd.grad(3 * loss, sr, create_graph=True)
    assert torch.equal(found, expected[2])
    with pytest.raises(RuntimeError, match="no second derivative"):
        found.sum().backward()


def test_bad_inputs() -> None:
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(RuntimeError, match="espan_triton::frequency_loss: sr has dtype float64"):
        ops.frequency_loss(image.double(), image.double(), *OPTIONS)
    with pytest.raises(RuntimeError, match="espan_triton::frequency_loss_gradient: hr has shape"):
        ops.frequency_loss_gradient(image, image[0], torch.ones(()), *OPTIONS)


def test_what_stands_in_for_missing_cuda_kernels() -> None:
    sr, hr = cases.inputs(1, 1, 9, 17)
    cases.check(_library._triton_frequency_loss_gradient, sr, hr)
    loss, terms = _library._triton_frequency_loss(sr, hr, *OPTIONS)
    both = ops.frequency_loss(sr, hr, *OPTIONS)
    assert torch.equal(loss, both[0])
    assert torch.equal(terms, both[1])
