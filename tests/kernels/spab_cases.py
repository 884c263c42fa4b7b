"""Blocks with random weights, and checks shared by the tests of spab's kernels."""

from collections.abc import Callable

import torch
from torch import Tensor

from espan_kernels import pack_spab, reference
from espan_kernels.packing.feature_maps import from_nchw, to_nchw
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
    gain: float = 1.0,
) -> None:
    """Check that the block obeys the tolerance rule and the padding channels stay zero."""
    batch, height, width = shape
    generator = torch.Generator().manual_seed(height * 1000 + width)

    def random(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)

    scale = gain / (9 * channels) ** 0.5
    weights = [random(channels, channels, 3, 3, scale=scale) for _ in range(convs)]
    # Large, to reveal a border that is silu(bias) instead of zero.
    biases = [random(channels) for _ in range(convs)]
    x = random(batch, channels, height, width)
    packed = pack_spab(weights, biases, dtype, device)
    features = from_nchw(x)
    results = run(features.to(device), packed, channels, convs)
    for t in results:
        assert t.shape[:3] == shape
        assert t.is_contiguous()
        assert (t[..., channels:] == 0).all()

    def block(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cast = [[t.to(dtype) for t in tensors] for tensors in (weights, biases)]
        return reference.spab(x.to(dtype), *cast)

    assert_accurate([to_nchw(t, channels) for t in results], block)
