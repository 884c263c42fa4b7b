"""Weights of `head`, `spab` and `tail` in the order in which CUDA and Triton read them.

A packed tensor is flat, of the dtype of the feature maps: convolution weights as `mma.m16n8k16`
wants them in its registers; biases in float32, seen as that dtype; then, for `spab` and `tail` with
up to 32 channels, the weights once more, as `wgmma` reads them from shared memory.  A warp reads a
step's weights with one 16-byte load per lane and pair of output tiles, or a block reads all of them
with one bulk copy, so the GPU shuffles nothing.  The reference reads the same tensor.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


def pad(weight: Tensor, *sizes: int) -> Tensor:
    """``weight`` with zeros added at the end of its first dimensions."""
    result = weight.new_zeros(*sizes, *weight.shape[len(sizes) :])
    result[tuple(slice(n) for n in weight.shape[: len(sizes)])] = weight
    return result


def group(channels: int) -> int:
    """Output tiles of 8 channels that a lane stores together: 4 are 16 bytes, 2 are 8."""
    return 4 if channels % 32 == 0 else 2


def output_order(channels: int) -> Tensor:
    """The channel in each column of the output tiles: (P,).

    Of an mma's 8 columns lane q of a quad has columns 2q and 2q + 1.  Channels are dealt so that a
    lane's columns of one group of tiles are neighbours in memory: it stores them at once.
    """
    g = group(channels)
    # tile = (block, j), column = (q, e)  ->  channel = (block, q, j, e)
    return torch.arange(channels).view(-1, 4, g, 2).transpose(1, 2).reshape(-1)


def natural(rows: Tensor, channels: int) -> Tensor:
    """Rows in the order of the output tiles, in that of the channels again."""
    return rows[output_order(channels).argsort().to(rows.device)]


def fragments(b: Tensor) -> Tensor:
    """(..., 16, N) -> (..., N/16, 32, 8): what each lane has of the mma's B, two tiles a load.

    Lane 4n + q has rows 2q, 2q + 1, 2q + 8, 2q + 9 of column n.
    """
    lead = b.shape[:-2]
    b = b.reshape(*lead, 2, 4, 2, b.shape[-1] // 16, 2, 8)  # h, q, e, pair, tile, n
    d = len(lead)
    order = [d + 3, d + 5, d + 1, d + 4, d, d + 2]
    return b.permute(*range(d), *order).reshape(*lead, -1, 32, 8)


def conv3x3(weight: Tensor) -> Tensor:
    """(N, P, 3, 3), rows in the order of the tiles -> steps (dx, 16 channels) of three taps dy."""
    n, channels = weight.shape[:2]
    b = weight.view(n, channels // 16, 16, 3, 3).permute(4, 1, 3, 2, 0)
    return fragments(b).flatten()


def conv1x1(weight: Tensor) -> Tensor:
    """(N, P), rows in the order of the tiles -> steps of 16 channels.

    The kernel reads this operand's pixels from memory, 4 or 8 neighbouring channels a lane, so the
    rows of B follow: with u the step within 32 channels, row (h, q, e) is channel 8q + 4u + 2h + e.
    """
    n, channels = weight.shape
    u = group(channels) // 2
    b = weight.view(n, -1, 4, u, 2, 2).permute(1, 3, 4, 2, 5, 0)  # (32 or 16), u, h, q, e, N
    return fragments(b.reshape(channels // 16, 16, n)).flatten()


def streamed_conv3x3(weight: Tensor) -> Tensor:
    """(N, P, 3, 3), rows in the order of the tiles -> B of csrc/cuda/stream.cuh.

    Steps (dx, 16 channels) of two chunks of 8 channels, each with N columns of 16 bytes for the
    taps dy in the order 0 2 1 0 2, in whose windows of three are the rotations that one product for
    all three taps needs.
    """
    n, channels = weight.shape[:2]
    b = weight.view(n, channels // 16, 2, 8, 3, 3).permute(5, 1, 2, 4, 0, 3)
    return b[:, :, :, [0, 2, 1, 0, 2]].flatten()


def streamed_conv1x1(weight: Tensor) -> Tensor:
    """(N, P), rows in the order of the tiles -> steps of 16 channels, as above."""
    n, channels = weight.shape
    return weight.view(n, channels // 16, 2, 8).permute(1, 2, 0, 3).flatten()


def is_streamed(p: int) -> bool:
    """Whether csrc/cuda/stream.cuh has kernels for P channels."""
    return p <= 32


def streamed_size(p: int, outputs: int) -> int:
    """Values of :func:`streamed_conv3x3`."""
    return 15 * p * outputs


def join(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    streamed: Sequence[Tensor] = (),
) -> Tensor:
    """One flat tensor of ``dtype``: the weights, the biases as float32, the streamed weights."""
    flat = torch.cat([w.flatten() for w in weights]).to(dtype)
    flat_biases = torch.cat([b.flatten() for b in biases]).float().view(dtype)
    return torch.cat([flat, flat_biases, *(s.to(dtype) for s in streamed)])


class Sizes(NamedTuple):
    """How many values of each kind a packed tensor has, in this order."""

    weights: int
    biases: int  # in float32
    streamed: int = 0

    def total(self, dtype: torch.dtype) -> int:
        """Values of ``dtype`` in all."""
        return self.weights + self.biases * 4 // dtype.itemsize + self.streamed

    def split(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, and the biases in float32."""
        end = self.weights + self.biases * 4 // packed.itemsize
        return packed[: self.weights], packed[self.weights : end].view(torch.float32)


@lru_cache(maxsize=64)
def inverse(pack: Callable[..., Tensor], *arguments: int) -> Tensor:
    """Where ``pack`` puts each weight; ``pack`` moves a tensor of 1-based numbers, 0 is padding."""
    packed = pack(*arguments)
    order = torch.empty(int(packed.max()), dtype=torch.int64)
    positions = packed.nonzero().squeeze(1)
    order[packed[positions] - 1] = positions
    return order
