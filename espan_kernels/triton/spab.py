"""A SPAN block in Triton, one launch for each convolution: torch.ops.espan_triton.spab."""

import torch
from torch import Tensor
from torch.library import triton_op

from espan_kernels import _packing
from espan_kernels.spab import _check_inputs, _form
from espan_kernels.triton.conv import conv

OP = "espan_triton::spab"


@triton_op(OP, mutates_args={})
def spab(
    x: Tensor, packed: Tensor, channels: int, convs: int, with_activation: bool
) -> tuple[Tensor, Tensor]:
    """As torch.ops.espan.spab, in float16 and bfloat16."""
    _check_inputs(x, packed, channels, convs)
    if x.dtype == torch.float32:
        raise RuntimeError(f"{OP}: x has dtype float32; it must be float16 or bfloat16")
    _packing.check_form(OP, _form(packed, x.dtype, channels, convs), "cuda")
    p = _packing.padded(channels)
    weights, biases = _packing.split(packed, convs * 9 * p * p, convs * p)
    layers = list(zip(weights.view(convs, -1), biases.view(convs, -1), strict=True))
    o = first = conv(x, *layers[0], None)
    for weight, bias in layers[1:-1]:
        o = conv(o, weight, bias, None)
    y = conv(o, *layers[-1], x)
    return y, first if with_activation else x.new_empty(0)
