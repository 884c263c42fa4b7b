"""The weights of `network` for every CPU path: float32, for Winograd convolution.

A layer is a matrix (products, outputs), followed by its bias; rows are padded with zeros to whole
vectors.  A 3x3 convolution is transformed for Winograd's F(4x4, 3x3): G g G^T, (36, inputs,
outputs), computed in float64 and rounded once.  The matrix of a depthwise convolution is (9,
channels).  The first 16 values are the mean colour of the network.
"""

import torch
from torch import Tensor

LANES = 16
# G for the points 0, a, -a, b, -b and infinity of csrc/cpu/winograd.h, with the rows for +-a
# multiplied by a and those for +-b by b^2: 3 kernel values -> 6.
_A, _B = 5 / 8, 3 / 2
_ROW_A, _ROW_B = 1 / (2 * _A * (_A**2 - _B**2)), 1 / (2 * (_B**2 - _A**2))
_G = [
    [1 / (_A * _B) ** 2, 0, 0],
    [_ROW_A, _ROW_A * _A, _ROW_A * _A**2],
    [_ROW_A, -_ROW_A * _A, _ROW_A * _A**2],
    [_ROW_B, _ROW_B * _B, _ROW_B * _B**2],
    [_ROW_B, -_ROW_B * _B, _ROW_B * _B**2],
    [0, 0, 1],
]


def conv(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, inputs, 3, 3) -> (36 inputs, outputs), flat."""
    return _flat(transformed(weight).flatten(0, 2))


def transformed(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (6, 6, inputs, outputs)."""
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    return torch.einsum("pi,qj,ocij->pqco", g, g, weight)


def pointwise(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, inputs, 1, 1) -> (inputs, outputs), flat."""
    return _flat(weight[:, :, 0, 0].T)


def head(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, inputs, k, k) -> (6 ceil(k / 3) k inputs, outputs), flat.

    Every three rows of the kernel, padded with zeros, are transformed along the columns.
    """
    rows = torch.nn.functional.pad(weight, (0, 0, 0, -weight.shape[2] % 3)).unflatten(2, (-1, 3))
    g = torch.tensor(_G, dtype=torch.float64, device="cpu")
    return _flat(torch.einsum("pa,ocnax->pnxco", g, rows).flatten(0, 3))


def depthwise(depth: Tensor, point: Tensor, *, first: int, halves: bool) -> Tensor:
    """(inputs, 1, 3, 3) and (outputs, inputs, 1, 1) -> (9, inputs) and (inputs, outputs), flat."""
    return torch.cat([_flat(depth.flatten(1).T), pointwise(point, halves=halves)])


def vector(values: Tensor) -> Tensor:
    """A bias."""
    return _flat(values.detach().cpu()[None])


def upsample_order(scale: int) -> Tensor:
    """Indices that reorder outputs from (colour, dy, dx) to (dy, dx, colour), as in image rows.

    The padding of a row repeats its first output, so that the range of all outputs is the range of
    the image.
    """
    order = torch.arange(3 * scale * scale, device="cpu").view(3, -1).T.flatten()
    return torch.cat([order, order[:1].expand(-len(order) % LANES)])


def _flat(rows: Tensor) -> Tensor:
    """Pad rows with zeros to whole vectors."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % LANES)).flatten().float()
