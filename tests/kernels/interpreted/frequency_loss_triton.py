"""The loss's Triton kernels on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.  The interpreter has no bfloat16.
"""

import pytest
import torch

from espan_kernels.triton import frequency_loss as kernels  # also defines torch.ops.espan_triton
from tests.kernels import frequency_loss_cases as cases

ops = torch.ops.espan_triton
OPTIONS = tuple(cases.OPTIONS[1].values())

# Sizes of whole DCT blocks: one, several, and more than a program's share across and down.  Other
# sizes run on the reference.
SHAPES = ((1, 2, 8, 8), (1, 1, 8, 136), (2, 1, 16, 8), (1, 1, 1, 1), (1, 3, 9, 17))


@pytest.fixture(autouse=True)
def _short_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program processes 8 rows instead of 32: the interpreter needs milliseconds per row."""
    monkeypatch.setattr(kernels, "ROWS", 8)


@pytest.mark.parametrize(
    "dtype", [torch.float16, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_values_and_gradients(dtype: torch.dtype) -> None:
    for i, shape in enumerate(SHAPES):
        sr, hr = cases.inputs(*shape, dtype=dtype)
        cases.check(ops.frequency_loss_gradient, sr, hr, 3.0, squared=i % 2 == 0)


@pytest.mark.parametrize("options", cases.OPTIONS, ids=str)
def test_weights(options: dict[str, float]) -> None:
    cases.check(ops.frequency_loss_gradient, *cases.inputs(1, 1, 8, 16), **options)


def test_layouts() -> None:
    sr, hr = cases.inputs(1, 2, 8, 16)
    last = torch.channels_last
    cases.check(ops.frequency_loss_gradient, sr.to(memory_format=last), hr)
    cases.check(ops.frequency_loss_gradient, sr[:, :, :, ::2], hr[:, :, :, ::2])


def test_memory_outside_is_not_accessed() -> None:
    sr, hr = cases.inputs(1, 1, 8, 24)
    views = []
    for t in (sr, hr):
        buffer = torch.full((t.numel() + 200,), float("nan"))
        views.append(buffer[100:-100].view(t.shape).copy_(t))
    cases.check(ops.frequency_loss_gradient, *views)
    from espan_kernels.triton.frequency_loss import _run

    buffer = torch.full((sr.numel() + 200,), float("nan"))
    _run(*views, buffer[100:-100].view(sr.shape), torch.ones(()), *cases.OPTIONS[1].values())
    assert buffer.isnan().sum() == 200


@pytest.mark.parametrize(
    "value", [float("nan"), pytest.param(float("inf"), marks=pytest.mark.slow)]
)
def test_not_finite(value: float) -> None:
    """It affects all results that depend on it, and no others."""
    sr, hr = cases.inputs(1, 2, 16, 32)
    sr[0, 1, 9, 20] = value
    actual = ops.frequency_loss_gradient(sr, hr, torch.ones(()), *OPTIONS)
    expected = cases.reference.frequency_loss_gradient(sr, hr, torch.ones(()), *OPTIONS)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isfinite(), b.isfinite())


@pytest.mark.parametrize("size", [(9, 10), (8, 16)])
def test_gradient(size: tuple[int, int]) -> None:
    sr, hr = cases.inputs(1, 1, *size)
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
