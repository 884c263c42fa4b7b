"""The weights of `network` for the CPU path amx: bf16 tiles for the matrix unit.

A layer is a tensor (kernel rows, values, outputs).  The values that a kernel row reads for one
pixel are adjacent in memory.  They are padded with zeros to chunks of 32, and the outputs to groups
of 16.  With 48 channels, a kernel row of three pixels is four and a half chunks.

A tile holds the weights of one chunk and one group, as pairs of inputs: [pair][output][2].  The
order of tiles is [chunk][group] or, with two halves for each weight, [chunk][group][high, low]:
high is the weight rounded to bf16, and low is the remainder rounded to bf16.  Biases are fp32,
viewed as bf16.  The mean colour of the network comes first: 16 fp32 values, viewed as bf16.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK, GROUP = 32, 16


def head(weight: Tensor) -> Tensor:
    """(outputs, 3, k, k) -> (k, 3 k, outputs); the pixels of an image are not padded."""
    return weight.detach().double().cpu().permute(2, 3, 1, 0).flatten(1, 2)


def conv(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (3, 3 P, outputs); P is the inputs padded to whole groups."""
    rows = weight.detach().double().cpu().permute(2, 3, 1, 0)
    return pad(rows, (0, 0, 0, -rows.shape[2] % GROUP)).flatten(1, 2)


def pointwise(weight: Tensor) -> Tensor:
    """(outputs, inputs) -> (1, inputs, outputs)."""
    return weight.detach().double().cpu().T[None]


def join(
    mean: Sequence[float], layers: Sequence[tuple[Tensor, Tensor | None]], *, halves: bool
) -> Tensor:
    """Join the layers to a flat bf16 tensor.  The first layer, the head, always has two halves."""
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
