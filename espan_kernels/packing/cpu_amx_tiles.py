"""Weights in the order in which the CPU path amx reads them: tiles of bf16 for the matrix unit.

A layer is a tensor (kernel rows, values, outputs): what a kernel row reads for one pixel follows
each other in memory, and is padded with zeros to chunks of 32 values, outputs to groups of 16.
With 48 channels a kernel row of three pixels is four and a half chunks.  A
tile has the weights of a chunk for a group, as pairs of inputs: [pair][output][2].  Tiles follow
each other as [chunk][group], or where weights are kept in two halves as [chunk][group][high, low]:
the weight rounded to bf16, and rounded what that took away.  Biases are in fp32, seen as bf16.  16
such values come first: the network's mean colour.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK, GROUP = 32, 16


def head(weight: Tensor) -> Tensor:
    """(outputs, 3, k, k) -> (k, 3 k, outputs): the pixels of an image are not padded."""
    return weight.detach().double().cpu().permute(2, 3, 1, 0).flatten(1, 2)


def conv(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (3, 3 P, outputs) with P the inputs padded to whole groups."""
    rows = weight.detach().double().cpu().permute(2, 3, 1, 0)
    return pad(rows, (0, 0, 0, -rows.shape[2] % GROUP)).flatten(1, 2)


def pointwise(weight: Tensor) -> Tensor:
    """(outputs, inputs) -> (1, inputs, outputs)."""
    return weight.detach().double().cpu().T[None]


def join(
    mean: Sequence[float], layers: Sequence[tuple[Tensor, Tensor | None]], *, halves: bool
) -> Tensor:
    """One flat tensor in bf16.  The first layer, the head, is in two halves in any case."""
    parts = [_vector(torch.tensor(mean, dtype=torch.float32))]
    for i, (weight, bias) in enumerate(layers):
        outputs = weight.shape[2]
        weight = pad(weight, (0, -outputs % GROUP, 0, -weight.shape[1] % CHUNK))
        weight = weight.reshape(-1, CHUNK // 2, 2, weight.shape[2] // GROUP, GROUP)
        weight = weight.permute(0, 3, 1, 4, 2)  # chunk, group, pair, output, 2
        high = weight.bfloat16()
        terms = [high, (weight - high).bfloat16()] if halves or i == 0 else [high]
        parts.append(torch.stack(terms, dim=2).flatten())
        parts.append(_vector(torch.zeros(outputs) if bias is None else bias.detach().cpu().float()))
    return torch.cat(parts)


def _vector(values: Tensor) -> Tensor:
    return pad(values, (0, -len(values) % GROUP)).view(torch.bfloat16)
