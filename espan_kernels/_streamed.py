"""Weights in the order in which the CPU kernels read them, whatever the dtype of the feature maps.

Float32 throughout.  A layer is a matrix (products, outputs), then its bias; rows are padded with
zeros to whole vectors.  A 3x3 convolution is transformed for Winograd's F(4x4, 3x3), in float64
and rounded once: G g G^T, (36, inputs, outputs).  16 values come first: the network's mean colour;
zeros in the other ops, where they keep the sizes apart from those of the CUDA form.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LANES = 16
# G for the points 0, 1, -1, 2, -2 and infinity: kernel -> 6 values.
_G = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]


def winograd(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (36 inputs, outputs) in float64."""
    g = torch.tensor(_G, dtype=torch.float64)
    return torch.einsum("pi,qj,ocij->pqco", g, g, weight.detach().double().cpu()).flatten(0, 2)


conv = winograd


def pointwise(weight: Tensor) -> Tensor:
    """(outputs, inputs) -> (inputs, outputs) in float64."""
    return weight.detach().double().cpu().T


def from_winograd(rows: Tensor) -> Tensor:
    """What :func:`winograd` was given, from float32 to about its rounding; in float64.

    Of the values 0, 1, 2 and 5 of each dimension, since 0 and 5 are products by powers of two.
    """
    u = rows.double().unflatten(0, (6, 6, -1))
    for _ in range(2):  # p, q, c, o -> q, c, o, i -> c, o, i, j
        u = torch.stack([4 * u[0], 3 * (u[2] - u[1]), u[5]], dim=-1)
    return u.permute(1, 0, 2, 3)


def head(weight: Tensor) -> Tensor:
    """(outputs, inputs, k, k) -> (k k inputs, outputs) in float64."""
    return weight.detach().double().cpu().permute(2, 3, 1, 0).flatten(0, 2)


def from_head(rows: Tensor, kernel: int) -> Tensor:
    """What :func:`head` was given."""
    return rows.unflatten(0, (kernel, kernel, -1)).permute(3, 2, 0, 1)


def upsample_order(scale: int) -> Tensor:
    """From (colour, dy, dx) to (dy, dx, colour), the order of pixels in a row of an image.

    What pads a row repeats its first output, so that the range of all is the range of the image.
    """
    order = torch.arange(3 * scale * scale).view(3, -1).T.flatten()
    return torch.cat([order, order[:1].expand(-len(order) % LANES)])


def pad(rows: Tensor) -> Tensor:
    """Rows of whole vectors."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[-1] % LANES))


def join(first: Sequence[float], layers: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
    """One flat tensor in float32: up to 16 values, then each layer's rows and its bias or zeros."""
    parts = [torch.tensor([*first, *[0.0] * (LANES - len(first))], dtype=torch.float64)]
    for rows, bias in layers:
        zeros = torch.zeros(rows.shape[-1], dtype=torch.float64)
        of_layer = zeros if bias is None else bias.detach().double().cpu()
        parts += [pad(rows.detach()), pad(of_layer[None])]
    return torch.cat([part.flatten() for part in parts]).float()


def size(shapes: Sequence[tuple[int, int]]) -> int:
    """Float32 values of layers with these matrices."""
    return LANES + sum((rows + 1) * (outputs + -outputs % LANES) for rows, outputs in shapes)


def split(packed: Tensor, shapes: Sequence[tuple[int, int]]) -> list[tuple[Tensor, Tensor]]:
    """The matrix and the bias of each layer, in float32, without padding."""
    widths = [outputs + -outputs % LANES for _, outputs in shapes]
    sizes = [(rows + 1) * width for (rows, _), width in zip(shapes, widths, strict=True)]
    layers = packed.view(torch.float32)[LANES:].split(sizes)
    found = []
    for layer, width, (_, outputs) in zip(layers, widths, shapes, strict=True):
        matrix = layer.view(-1, width)[:, :outputs]
        found.append((matrix[:-1], matrix[-1]))
    return found
