"""The weights of `network` for every CPU path: float32, for Winograd convolution.

A layer is a matrix (products, outputs), followed by its bias; rows are padded with zeros to whole
vectors.  A 3x3 convolution is transformed for Winograd's F(4x4, 3x3): G g G^T, (36, inputs,
outputs), computed in float64 and rounded once.  The first 16 values are the mean colour of the
network.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 16
# G for the points 0, 1, -1, 2, -2 and infinity: 3 kernel values -> 6.
_G = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]


def conv(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (36 inputs, outputs) in float64."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.einsum("pi,qj,ocij->pqco", g, g, weight.detach().double().cpu()).flatten(0, 2)


def pointwise(weight: Tensor) -> Tensor:
    """(outputs, inputs) -> (inputs, outputs) in float64."""
    return weight.detach().double().cpu().T


def head(weight: Tensor) -> Tensor:
    """(outputs, inputs, k, k) -> (k k inputs, outputs) in float64."""
    return weight.detach().double().cpu().permute(2, 3, 1, 0).flatten(0, 2)


def upsample_order(scale: int) -> Tensor:
    """Indices that reorder outputs from (colour, dy, dx) to (dy, dx, colour), as in image rows.

    The padding of a row repeats its first output, so that the range of all outputs is the range of
    the image.
    """
    order = torch.arange(3 * scale * scale).view(3, -1).T.flatten()
    return torch.cat([order, order[:1].expand(-len(order) % LANES)])


def _pad(rows: Tensor) -> Tensor:
    """Pad rows with zeros to whole vectors."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % LANES))


def join(mean: Sequence[float], layers: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Join to a flat float32 tensor: mean colour, then each layer's rows and its bias or zeros."""
    parts = [torch.tensor([*mean, *[0.0] * (LANES - len(mean))], dtype=torch.float64)]
    for rows, bias in layers:
        zeros = torch.zeros(rows.shape[-1], dtype=torch.float64)
        of_layer = zeros if bias is None else bias.detach().double().cpu()
        parts += [_pad(rows.detach()), _pad(of_layer[None])]
    return torch.cat([part.flatten() for part in parts]).float()
