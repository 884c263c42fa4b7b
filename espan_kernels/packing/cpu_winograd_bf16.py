"""The weights of `network` for bf16 on the CPU path avx512: the 3x3 convolutions in pairs of bf16.

A 3x3 convolution is transformed as in `cpu_winograd`, rounded once to bf16, and stored as pairs of
inputs, (36, pairs, outputs, 2), padded with zeros.  All other weights are those of `cpu_winograd`,
viewed as bf16, and so are those of a 3x3 convolution of the image: bf16 would keep 8 bits of it.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from espan_kernels.packing import cpu_winograd


def conv(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, inputs, 3, 3) -> (36, pairs, outputs, 2), flat; with `halves`, in fp32."""
    if halves:
        return cpu_winograd.conv(weight, halves=True).view(torch.bfloat16)
    rows = cpu_winograd.transformed(weight).flatten(0, 1)
    rows = pad(rows, (0, -rows.shape[2] % cpu_winograd.LANES, 0, rows.shape[1] % 2))
    return rows.unflatten(1, (-1, 2)).transpose(2, 3).bfloat16().flatten()


def pointwise(weight: Tensor, *, halves: bool) -> Tensor:
    """As `cpu_winograd.pointwise`."""
    return cpu_winograd.pointwise(weight, halves=halves).view(torch.bfloat16)


def head(weight: Tensor, *, halves: bool) -> Tensor:
    """As `cpu_winograd.head`."""
    return cpu_winograd.head(weight, halves=halves).view(torch.bfloat16)


def depthwise(depth: Tensor, point: Tensor, *, first: int, halves: bool) -> Tensor:
    """As `cpu_winograd.depthwise`."""
    return cpu_winograd.depthwise(depth, point, first=first, halves=halves).view(torch.bfloat16)


def vector(values: Tensor) -> Tensor:
    """A bias."""
    return cpu_winograd.vector(values).view(torch.bfloat16)
