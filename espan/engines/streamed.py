"""The engine for CPUs: the whole network as one op, which streams the image in strips."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.engines.plausible import is_plausible
from espan.folding import Folded
from espan.models.network import cut
from espan_kernels import Layer, backends, describe_network, network, pack_network

_ENDS = {"sigmoid": "gate_sigmoid", "linear": "gate_linear", "tanh": "gate_tanh"}


class Streamed(nn.Module):
    """Computes in fp32; on CPUs with AMX or avx512_bf16 also in bf16 with fp32 accumulation.

    With dtype None, AMX computes fp32 from bf16 halves, which keep 17 bits of each value.
    """

    packed: Tensor

    def __init__(self, folded: Folded, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.architecture = folded.architecture
        layers = layers_of(folded)
        options = {"unshuffle": self.architecture.unshuffle}
        self.layers = describe_network(layers, **options)
        packed = pack_network(
            layers,
            scale=self.architecture.tail_scale,
            mean=(0.0, 0.0, 0.0) if folded.mean is None else folded.mean.tolist(),
            dtype=dtype,
            **options,
        )
        self.dtype = dtype or torch.float32
        self.register_buffer("packed", packed)

    @staticmethod
    def can_run(dtype: torch.dtype | None) -> bool:
        """Whether the CPU path in use supports `dtype`."""
        if dtype == torch.bfloat16:
            return backends.cpu_has_bfloat16()
        return dtype in (None, torch.float32)

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        if image.dtype != torch.uint8:
            image = image.float()
        architecture = self.architecture
        result, values = network(
            image,
            self.packed,
            layers=self.layers,
            unshuffle=architecture.unshuffle,
            scale=architecture.tail_scale,
        )
        low, high, not_finite = values.unbind(1)
        flag |= ~(is_plausible(low, high) & (not_finite == 0)).all()
        if architecture.unshuffle > 1:
            result = cut(result, image, architecture.scale)
        return result if result.dtype == torch.uint8 else result.to(self.dtype)


def layers_of(folded: Folded) -> list[Layer]:
    """The network as layers of the op."""
    architecture = folded.architecture
    layers: list[Layer] = []

    def add(kind: Any, weight: Tensor | None, bias: Tensor | None = None, **fields: Any) -> int:
        layers.append(Layer(kind, weight=weight, bias=bias, **fields))
        return len(layers) - 1

    if architecture.unshuffle > 1:
        head = add("conv", *folded.head, input=add("image", None))
    else:
        head = add("head", *folded.head, activation=folded.head_activation)
    side = -1
    if folded.last is not None:
        # The sums of the concat's 1x1, to which each operand adds its part.
        assert folded.side is not None
        of_head, *parts = folded.side.split(architecture.channels, dim=1)
        if folded.near is None:
            side = add("pointwise", of_head, folded.last.bias, input=head)
        else:
            side = add("head", folded.near.weight, folded.near.bias + folded.last.bias)
    last = activation = head
    for i, block in enumerate(folded.blocks):
        x = o = last
        for kernel in block.convs[:-1]:
            o = add("conv", *kernel, input=o, activation=architecture.activation)
            if kernel is block.convs[0]:
                activation = o
        end = _ENDS.get(block.end, architecture.activation if block.end == "act" else "none")
        other = x if block.end in _ENDS else -1
        kernel = block.convs[-1]
        last = add("conv", *kernel, input=o, other=other, activation=end, gate=block.gate_conv)
        if i == 0 and side >= 0:
            side = add("pointwise", parts[0], input=last, other=side)
    if side < 0:
        return [*layers, *_depthwise(folded, last, len(layers))]
    assert folded.last is not None
    assert folded.upsample is not None
    if architecture.concat_activation:
        side = add("pointwise", parts[1], input=activation, other=side)
    if architecture.tail == "conv":
        fused = add("conv", folded.last.weight, input=last, other=side, activation="add")
    else:
        fused = add("pointwise", folded.last.weight, input=last, other=side)
    add("upsample", *folded.upsample, input=fused)
    return layers


def _depthwise(folded: Folded, last: int, index: int) -> list[Layer]:
    """`near`, as layer `index`, and the tail; `near` is padded to a multiple of 16 channels."""
    assert folded.near is not None
    assert folded.depthwise is not None
    assert folded.pointwise is not None
    channels = len(folded.near.weight)
    padding = -channels % 16
    near = F.pad(folded.near.weight, (0, 0) * 3 + (0, padding))
    depthwise, pointwise = folded.depthwise, folded.pointwise
    zeros = depthwise.new_zeros(padding, 1, 3, 3)
    depthwise = torch.cat([depthwise[:channels], zeros, depthwise[channels:]])
    zeros = pointwise.new_zeros(len(pointwise), padding, 1, 1)
    pointwise = torch.cat([pointwise[:, :channels], zeros, pointwise[:, channels:]], dim=1)
    return [
        Layer("head", weight=near),
        Layer("depthwise", input=last, other=index, weight=pointwise, depthwise=depthwise),
    ]
