"""Blocks with random weights and what must come out, shared by the tests of spab's kernels."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from espan_kernels import pack_spab, reference
from espan_kernels._features import from_nchw, to_nchw
from tests.kernels.winograd_reference import FACTOR, by_winograd
from tests.tolerance import assert_accurate

# (x, packed, channels, convs) -> y and activation
Run = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def check(
    run: Run,
    channels: int,
    convs: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    *,
    device: str = "cpu",
    form: str | None = None,
    winograd: bool = False,
    gain: float = 1.0,
) -> None:
    """The block obeys the tolerance rule, and what is beyond the channels stays zero."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(height * 1000 + width)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    scale = gain / (9 * channels) ** 0.5
    weights = [random(channels, channels, 3, 3, scale=scale) for _ in range(convs)]
    # Large, so that a border that is silu(bias) instead of zero shows.
    biases = [random(channels) for _ in range(convs)]
    x = random(batch, channels, height, width)
    packed = pack_spab(weights, biases, dtype, device, form=form)
    features = from_nchw(x)
    results = run(features.to(device), packed, channels, convs)
    # In the same memory layout: PyTorch has another order of summation for each.
    factor = FACTOR if winograd and dtype == torch.float32 else 2
    with by_winograd() if winograd else nullcontext():
        expected = reference.spab(to_nchw(features, channels), weights, biases)
    exact = reference.spab(x.double(), [w.double() for w in weights], [b.double() for b in biases])
    for actual, plain, true in zip(results, expected, exact, strict=True):
        assert actual.shape[:3] == shape
        assert actual.is_contiguous()
        assert (actual[..., channels:] == 0).all()
        assert_accurate(to_nchw(actual, channels).cpu(), plain, true, factor=factor)
