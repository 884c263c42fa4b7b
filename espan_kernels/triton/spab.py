"""A SPAN block in Triton, one launch per convolution: torch.ops.espan_triton.spab."""

import torch
from torch import Tensor
from torch.library import triton_op

from espan_kernels.spab import check_inputs, sizes, spab_by_reference
from espan_kernels.triton.conv import conv


@triton_op("espan_triton::spab", mutates_args={})
def spab(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`espan_kernels.spab`.  float32 uses the reference: tensor cores would round it."""
    check_inputs(x, packed, channels, convs)
    if x.dtype == torch.float32:
        return spab_by_reference(x, packed, channels, convs, with_activation)
    weights, biases = sizes(channels, convs).split(packed)
    layers = list(zip(weights.view(convs, -1), biases.view(convs, -1), strict=True))
    o = first = conv(x, *layers[0], None)
    for weight, bias in layers[1:-1]:
        o = conv(o, weight, bias, None)
    y = conv(o, *layers[-1], x)
    return y, first if with_activation else x.new_empty(0)
