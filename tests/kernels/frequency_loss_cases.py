"""Inputs and checks shared by the tests of all implementations of the frequency-aware loss.

The derivative of ``|v|`` jumps at 0, so a value that would be zero but for rounding may have any
sign.  ``inputs`` searches for images in which no high-frequency value and no coefficient is that
small.  Some are zero for every image, such as all but one coefficient of a single pixel; in exact
arithmetic, they have no gradient with either sign, so they are allowed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from espan_kernels import frequency_loss_reference, reference
from tests.tolerance import assert_accurate

# Images smaller than the blur and than a DCT block, of exactly one block, not a multiple of it, and
# larger than one tile of each implementation: 32 x 128 on the CPU, 64 x 128 in CUDA.
SHAPES = ((1, 1, 1, 1), (1, 2, 1, 7), (2, 1, 4, 2), (2, 3, 3, 5), (1, 1, 6, 10), (1, 2, 8, 8))
SHAPES += ((1, 3, 9, 17), (2, 1, 24, 32), (1, 1, 25, 41), (1, 1, 33, 128), (1, 1, 73, 137))

OPTIONS: tuple[dict[str, Any], ...] = (
    {"pixel": 1.0, "hf": 1.0, "dct": 0.001, "squared": True},
    {"pixel": 0.7, "hf": 1.3, "dct": 2.0, "squared": False},
    {"pixel": 1.0, "hf": 0.0, "dct": 0.0, "squared": False},
    {"pixel": 0.0, "hf": 1.0, "dct": 0.0, "squared": True},
    {"pixel": 0.0, "hf": 0.0, "dct": 1.0, "squared": True},
)

# sr, hr, scale, pixel, hf, dct, squared
LossGradient = Callable[..., tuple[Tensor, Tensor, Tensor]]

FAR_FROM_ZERO = 2e-6  # about ten times the rounding error of a float32 coefficient


def _signed(d: Tensor) -> Tensor:
    """Every value whose sign is part of the gradient."""
    coefficients = frequency_loss_reference._coefficients(d)
    return torch.cat([(d - frequency_loss_reference._blur(d)).flatten(), coefficients.flatten()])


def inputs(
    *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """SR and HR in 0 to 1."""
    generator = torch.Generator().manual_seed(sum(shape))
    always_zero = (
        _signed(torch.randn(shape, generator=generator, dtype=torch.float64)).abs() < 1e-12
    )
    for _ in range(200):
        sr, hr = (torch.rand(shape, generator=generator).to(dtype) for _ in range(2))
        signed = _signed(hr.double() - sr.double()).abs()
        if (signed > FAR_FROM_ZERO)[~always_zero].all():
            return sr.to(device), hr.to(device)
    raise AssertionError(f"no image of {shape} in {dtype} is far enough from zero")


def check(
    gradient: LossGradient, sr: Tensor, hr: Tensor, scale: float = 1.0, **options: Any
) -> None:
    """Check that loss, terms and gradient obey the tolerance rule, and the gradient's strides."""
    options = OPTIONS[1] | options
    factor = torch.tensor(scale, device=sr.device)
    actual = gradient(sr, hr, factor, *options.values())
    assert (actual[0].shape, actual[1].shape) == ((), (3,))
    assert actual[2].stride() == torch.empty_like(sr).stride()
    assert {t.device for t in actual} == {sr.device}

    def together(loss: Tensor, terms: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Join loss and terms: their magnitude is the same, and a term may be almost zero."""
        return torch.cat([loss.view(1), terms]), gradient

    def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        images = (t.cpu().to(dtype) for t in (sr, hr))
        return together(*reference.frequency_loss_gradient(*images, factor.cpu(), **options))

    contents = tuple(t.cpu().contiguous().view(torch.uint8).numpy().tobytes() for t in (sr, hr))
    key = (contents, sr.shape, scale, *options.values())
    assert_accurate(together(*actual), plain, dtype=sr.dtype, key=key)


def check_special(gradient: LossGradient, value: float, device: str = "cpu") -> None:
    """Check that a non-finite value affects all results that depend on it, and no others."""
    sr, hr = inputs(1, 2, 40, 41, device=device)
    sr[0, 1, 20, 30] = value
    one = torch.ones((), device=device)
    for options in OPTIONS:
        actual = gradient(sr, hr, one, *options.values())
        expected = reference.frequency_loss_gradient(sr, hr, one, **options)
        for a, b in zip(actual, expected, strict=True):
            assert torch.equal(a.isfinite(), b.isfinite())
