"""The weights of `network` for the CPU path amx: bf16 tiles for the matrix unit.

A layer is a tensor (kernel rows, values, outputs).  The values that a kernel row reads for one
pixel are adjacent in memory.  They are padded with zeros to chunks of 32, and the outputs to groups
of 16.  With 48 channels, a kernel row of three pixels is four and a half chunks.

A tile holds the weights of one chunk and one group, as pairs of inputs: [pair][output][2].  The
order of tiles is [chunk][group] or, with two halves for each weight, [chunk][group][high, low]:
high is the weight rounded to bf16, and low is the remainder rounded to bf16.  Biases are fp32,
viewed as bf16.  The mean colour of the network comes first: 16 fp32 values, viewed as bf16.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK, GROUP = 32, 16


def head(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, 3, k, k) -> (k, 3 k, outputs); the pixels of an image are not padded."""
    return _tiles(weight.permute(2, 3, 1, 0).flatten(1, 2), halves=halves)


def conv(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, inputs, 3, 3) -> (3, 3 P, outputs); P is the inputs padded to whole groups."""
    return _tiles(_rows(weight), halves=halves)


def pointwise(weight: Tensor, *, halves: bool) -> Tensor:
    """(outputs, inputs, 1, 1) -> (1, inputs, outputs)."""
    return _tiles(weight[:, :, 0, 0].T[None], halves=halves)


def depthwise(depth: Tensor, point: Tensor, *, first: int, halves: bool) -> Tensor:
    """A depthwise 3x3 and a 1x1 as one 3x3, of `first` channels of one map and those of another.

    In products of matrices it takes less time than 9 multiply-adds for each channel by vectors.
    """
    merged = point * depth.transpose(0, 1)
    parts = (merged[:, :first], merged[:, first:])
    return _tiles(torch.cat([_chunks(_rows(part)) for part in parts], dim=1), halves=halves)


def vector(values: Tensor) -> Tensor:
    """A bias."""
    return pad(values.detach().cpu().float(), (0, -len(values) % GROUP)).view(torch.bfloat16)


def _rows(weight: Tensor) -> Tensor:
    rows = weight.permute(2, 3, 1, 0)
    return pad(rows, (0, 0, 0, -rows.shape[2] % GROUP)).flatten(1, 2)


def _chunks(rows: Tensor) -> Tensor:
    return pad(rows, (0, 0, 0, -rows.shape[1] % CHUNK))


def _tiles(rows: Tensor, *, halves: bool) -> Tensor:
    rows = _chunks(pad(rows, (0, -rows.shape[2] % GROUP)))
    rows = rows.reshape(-1, CHUNK // 2, 2, rows.shape[2] // GROUP, GROUP)
    rows = rows.permute(0, 3, 1, 4, 2)  # chunk, group, pair, output, 2
    high = rows.bfloat16()
    terms = [high, (rows - high).bfloat16()] if halves else [high]
    return torch.stack(terms, dim=2).flatten()
