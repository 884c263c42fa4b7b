"""A block in Triton, one launch per convolution: torch.ops.espan_triton.spab."""

import torch
from torch import Tensor
from torch.library import triton_op

from espan_kernels.spab import LEARNED, check_inputs, sizes, spab_by_reference
from espan_kernels.triton.conv import conv


@triton_op("espan_triton::spab", mutates_args={})
def spab(
    x: Tensor,
    packed: Tensor,
    channels: int,
    convs: int,
    with_activation: bool,
    activation: str = "silu",
    gate: str = "sigmoid",
) -> tuple[Tensor, Tensor]:
    """See :func:`espan_kernels.spab`.  float32 uses the reference: tensor cores would round it."""
    check_inputs(x, packed, channels, convs, activation, gate)
    if x.dtype == torch.float32:
        return spab_by_reference(x, packed, channels, convs, with_activation, activation, gate)
    p = x.shape[3]
    weights, biases = sizes(channels, convs, gate).split(packed)
    layers = list(
        zip(
            weights[: convs * 9 * p * p].view(convs, -1),
            biases[: convs * p].view(convs, -1),
            strict=True,
        )
    )
    o = first = conv(x, *layers[0], activation)
    for weight, bias in layers[1:-1]:
        o = conv(o, weight, bias, activation)
    if gate in LEARNED:
        gate_conv = weights[convs * 9 * p * p :], biases[convs * p :]
        y = conv(o, *layers[-1], gate, x, gate_conv)
    elif gate == "sigmoid":
        y = conv(o, *layers[-1], gate, x)
    else:
        y = conv(o, *layers[-1], activation if gate == "act" else "none")
    return y, first if with_activation else x.new_empty(0)
