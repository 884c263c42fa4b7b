"""Winograd's F(4x4, 3x3) in plain PyTorch, the reference for fp32 results of the CPU kernels.

A direct convolution of few channels rounds very little, but Winograd's transforms always round: of
550 random blocks, the worst had 49 times the error of a direct convolution in PyTorch.  So the
tolerance rule compares with the same algorithm.  winograd_bound.py has a bound for all inputs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.winograd_bound import AT, BT, G

# Allows another order of operations in a few layers: of the blocks, tails and networks in the
# tests, the worst had 1.8 times the error of this reference, simulated as in tests/tolerance.py.
WINOGRAD = 4

_direct = F.conv2d


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with a padding of 1, in the dtype of ``x``."""
    at, bt = AT.to(x.dtype), BT.to(x.dtype)
    transformed = torch.einsum("pi,qj,ocij->ocpq", G, G, weight.double()).to(x.dtype)
    height, width = x.shape[2:]
    rows, columns = -(-height // 4), -(-width // 4)
    padded = F.pad(x, (1, 4 * columns - width + 1, 1, 4 * rows - height + 1))
    tiles = bt @ padded.unfold(2, 6, 4).unfold(3, 6, 4) @ bt.T
    products = torch.einsum("nchwpq,ocpq->nohwpq", tiles, transformed)
    y = (at @ products @ at.T).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    y = y[..., :height, :width]
    return y if bias is None else y + bias.view(-1, 1, 1)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int = 0, groups: int = 1
) -> Tensor:
    # The head's three inputs and depthwise convolutions are convolved directly.
    if (
        groups == 1
        and weight.shape[1] != 3
        and weight.shape[2:] == (3, 3)
        and x.dtype == torch.float32
    ):
        return conv3x3(x, weight, bias)
    return _direct(x, weight, bias, padding=padding, groups=groups)


@contextmanager
def by_winograd() -> Iterator[None]:
    """A context in which fp32 references use Winograd; fp64 and 16 bits use direct convolutions."""
    with mock.patch.object(F, "conv2d", _conv2d):
        yield
