"""Merging kernels is exact in fp64, including the border."""

import pytest
import torch
import torch.nn.functional as F

from espan.reparameterize import Kernel, add, compose


def kernel(out_channels, in_channels, width):
    return Kernel(
        torch.randn(out_channels, in_channels, width, width, dtype=torch.float64),
        torch.randn(out_channels, dtype=torch.float64),
    )


@pytest.mark.parametrize("widths", [(1, 3), (3, 1), (1, 9), (9, 1), (1, 1)])
def test_compose(widths):
    first, second = kernel(5, 4, widths[0]), kernel(6, 5, widths[1])
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    padded = F.pad(x, [max(widths) // 2] * 4)
    expected = F.conv2d(F.conv2d(padded, *first), *second)
    merged = compose(first, second)
    torch.testing.assert_close(F.conv2d(padded, *merged), expected, rtol=1e-12, atol=1e-12)


def test_compose_needs_a_1x1():
    with pytest.raises(ValueError, match="one kernel must be 1x1"):
        compose(kernel(4, 4, 3), kernel(4, 4, 3))


def test_add():
    kernels = [kernel(4, 3, width) for width in (5, 1, 3)]
    x = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    expected = sum(F.conv2d(x, *k, padding=k.weight.shape[-1] // 2) for k in kernels)
    torch.testing.assert_close(
        F.conv2d(x, *add(*kernels), padding=2), expected, rtol=1e-12, atol=1e-12
    )
