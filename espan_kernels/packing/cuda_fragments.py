"""The weights of `head`, `spab` and `tail` for CUDA and Triton.

A packed tensor is flat and has the dtype of the feature maps.  It contains:

* the weights, in the register layout of `mma.m16n8k16`;
* the biases in float32, viewed as the dtype of the feature maps;
* where there are kernels for Hopper, the weights again, in the layouts of `wgmma`: for `head` with
  a kernel of 3 or more, for `spab`, and for `tail` with up to 48 channels, or with a 1x1 as the
  last convolution.

A warp reads the weights of a step with one 16-byte load per lane and pair of output tiles, or a
block reads all weights with one bulk copy.  The GPU does not rearrange them.  The reference unpacks
the same tensor.
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
    """The output tiles of 8 channels that a lane stores together: 4 are 16 bytes, 2 are 8."""
    return 4 if channels % 32 == 0 else 2


def output_order(channels: int) -> Tensor:
    """The channel in each column of the output tiles, (P,).

    Lane q of a quad holds columns 2q and 2q + 1 of the 8 columns of an mma.  The channels are
    assigned so that the columns that a lane holds in one group of tiles are adjacent in memory, and
    it can store them with one instruction.
    """
    g = group(channels)
    # tile = (block, j), column = (q, e)  ->  channel = (block, q, j, e)
    return torch.arange(channels, device="cpu").view(-1, 4, g, 2).transpose(1, 2).reshape(-1)


def natural(rows: Tensor, channels: int) -> Tensor:
    """Reorder rows from the order of the output tiles to the order of the channels."""
    return rows[output_order(channels).argsort().to(rows.device)]


def fragments(b: Tensor) -> Tensor:
    """(..., 16, N) -> (..., N/16, 32, 8): each lane's part of the mma operand B, two tiles a load.

    Lane 4n + q holds rows 2q, 2q + 1, 2q + 8, 2q + 9 of column n.
    """
    lead = b.shape[:-2]
    b = b.reshape(*lead, 2, 4, 2, b.shape[-1] // 16, 2, 8)  # h, q, e, pair, tile, n
    d = len(lead)
    order = [d + 3, d + 5, d + 1, d + 4, d, d + 2]
    return b.permute(*range(d), *order).reshape(*lead, -1, 32, 8)


def conv3x3(weight: Tensor) -> Tensor:
    """(N, P, 3, 3), rows in tile order -> steps (dx, 16 channels) of three taps dy."""
    n, channels = weight.shape[:2]
    b = weight.view(n, channels // 16, 16, 3, 3).permute(4, 1, 3, 2, 0)
    return fragments(b).flatten()


def conv1x1(weight: Tensor) -> Tensor:
    """(N, P), rows in tile order -> steps of 16 channels.

    The kernel reads the pixels of this operand from memory, 4 or 8 adjacent channels per lane.  The
    rows of B have the matching order: in step u of 32 channels, row (h, q, e) is channel
    8q + 4u + 2h + e.
    """
    n, channels = weight.shape
    u = group(channels) // 2
    b = weight.view(n, -1, 4, u, 2, 2).permute(1, 3, 4, 2, 5, 0)  # (32 or 16), u, h, q, e, N
    return fragments(b.reshape(channels // 16, 16, n)).flatten()


def conv1x1_of_sums(weight: Tensor) -> Tensor:
    """(N, P), rows and columns in tile order -> steps of 16 channels.

    The sums of a product, rounded and in the registers where they are, are the other operand.
    """
    n, channels = weight.shape
    return fragments(weight.T.reshape(channels // 16, 16, n)).flatten()


def streamed_conv3x3(weight: Tensor, *, apart: bool) -> Tensor:
    """(N, P, 3, 3), rows in tile order -> operand B of csrc/cuda/stream.cuh.

    The result consists of steps (dx, 16 channels) of two chunks of 8 channels.  Each chunk has N
    columns of 16 bytes for each tap dy.  If the taps are ``apart``, each has its own product.
    Otherwise they have the order 0 2 1 0 2, and one product computes three; it needs them in a
    rotated order, and every rotation is a window of three in that sequence.
    """
    n, channels = weight.shape[:2]
    b = weight.view(n, channels // 16, 2, 8, 3, 3).permute(5, 1, 2, 4, 0, 3)
    return b.flatten() if apart else b[:, :, :, [0, 2, 1, 0, 2]].flatten()


def streamed_conv1x1(weight: Tensor) -> Tensor:
    """(N, P), rows in tile order -> steps of 16 channels, in chunks as in `streamed_conv3x3`."""
    n, channels = weight.shape
    return weight.view(n, channels // 16, 2, 8).permute(1, 2, 0, 3).flatten()


def wide_conv3x3(weight: Tensor) -> Tensor:
    """(64, 64, 3, 3) -> operand A of csrc/cuda/spab_wide.cuh, in steps (dy, dx, 16 channels).

    Two of three steps are held in registers, and come first, in the order of the registers: lane
    4g + q of a warp holds rows g and g + 8, columns 2q, 2q + 1, 2q + 8 and 2q + 9.  The third is
    read from shared memory, in chunks of 8 channels.
    """
    steps = weight.view(64, 4, 16, 3, 3).permute(3, 4, 1, 0, 2).reshape(12, 3, 64, 16)
    held = steps[:, :2].reshape(24, 4, 2, 8, 2, 4, 2)  # step, warp, high, g, high column, q, e
    return torch.cat([held.permute(0, 1, 3, 5, 4, 2, 6).flatten(), _chunks(steps[:, 2]).flatten()])


def wide_conv1x1(weight: Tensor) -> Tensor:
    """(64, 64) -> steps of 16 channels, in chunks of 8 channels."""
    return _chunks(weight.view(64, 4, 16).transpose(0, 1)).flatten()


def _chunks(steps: Tensor) -> Tensor:
    return steps.reshape(-1, 64, 2, 8).transpose(1, 2)


def taps_apart(p: int) -> bool:
    """Whether the taps of a convolution between maps of P channels are apart, to save memory."""
    return p > 32


def streamed_size(p: int, outputs: int, *, apart: bool) -> int:
    """The number of values in the result of :func:`streamed_conv3x3`."""
    return (9 if apart else 15) * p * outputs


def join(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    dtype: torch.dtype,
    streamed: Sequence[Tensor] = (),
) -> Tensor:
    """Join to a flat tensor of ``dtype``: weights, biases as float32, streamed weights."""
    flat = torch.cat([w.flatten() for w in weights]).to(dtype)
    flat_biases = torch.cat([b.flatten() for b in biases]).float().view(dtype)
    return torch.cat([flat, flat_biases, *(s.to(dtype) for s in streamed)])


class Sizes(NamedTuple):
    """The number of values in each part of a packed tensor, in the order of the parts."""

    weights: int
    biases: int  # in float32
    streamed: int = 0

    def total(self, dtype: torch.dtype) -> int:
        """The size of the packed tensor in values of ``dtype``."""
        return self.weights + self.biases * 4 // dtype.itemsize + self.streamed

    def split(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """The weights, and the biases in float32."""
        end = self.weights + self.biases * 4 // packed.itemsize
        return packed[: self.weights], packed[self.weights : end].view(torch.float32)


@lru_cache(maxsize=64)
def inverse(pack: Callable[..., Tensor], *arguments: int) -> Tensor:
    """The position in the packed tensor of each weight.

    ``pack`` returns a packed tensor of 1-based weight numbers, in which 0 is padding.
    """
    packed = pack(*arguments)
    order = torch.empty(int(packed.max()), dtype=torch.int64, device="cpu")
    positions = packed.nonzero().squeeze(1)
    order[packed[positions] - 1] = positions
    return order
