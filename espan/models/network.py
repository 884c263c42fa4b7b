"""The networks of the SPAN family as plain PyTorch modules, the reference for all other code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.models.architecture import Architecture
from espan_kernels import reference

ConvFactory = Callable[[int, int, int], nn.Module]
Gate = Callable[[Tensor, Tensor], Tensor]


def plain_conv(in_channels: int, out_channels: int, kernel: int) -> nn.Module:
    """A kernel x kernel convolution with bias and zero padding of kernel // 2."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)


class SPAB(nn.Module):
    """Swift parameter-free attention block: convolutions with SiLU between them, then the gate.

    (N, C, H, W) -> the output and the first activation (an operand of SPAN's concat), both
    (N, C, H, W).
    """

    def __init__(self, channels: int, convs: int, conv: ConvFactory, gate: Gate) -> None:
        super().__init__()
        self.convs = nn.ModuleList(conv(channels, channels, 3) for _ in range(convs))
        self.gate = gate

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.silu(self.convs[0](x))
        o = first
        for conv in self.convs[1:-1]:
            o = F.silu(conv(o))
        o = self.convs[-1](o)
        return self.gate(o, x), first


class Tail(nn.Module):
    """From the features to the image: 3x3, concat and 1x1, 3x3 to 3*s*s, pixel shuffle."""

    def __init__(self, channels: int, scale: int, conv: ConvFactory) -> None:
        super().__init__()
        self.post = conv(channels, channels, 3)
        self.fuse = nn.Conv2d(4 * channels, channels, 1)
        self.upsample = conv(channels, 3 * scale * scale, 3)
        self.scale = scale

    def forward(self, head: Tensor, last: Tensor, first: Tensor, extra: Tensor) -> Tensor:
        fused = self.fuse(torch.cat([head, self.post(last), first, extra], dim=1))
        return F.pixel_shuffle(self.upsample(fused), self.scale)


class Network(nn.Module):
    """A network of the SPAN family: (N, 3, H, W) in 0-1 -> (N, 3, s*H, s*W), not clamped.

    Args:
        architecture: its description.
        conv: creates each convolution wider than 1x1; training passes re-parameterised ones.
        gate: the attention gate; training passes the kernel, `espan_kernels.gate`.

    Attributes:
        record: how the weights were made, as JSON data from the checkpoint; {} if unknown.
    """

    mean: Tensor

    def __init__(
        self,
        architecture: Architecture,
        *,
        conv: ConvFactory = plain_conv,
        gate: Gate = reference.gate,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.record: dict[str, Any] = {}
        channels = architecture.channels
        self.head = conv(3, channels, architecture.head_kernel)
        self.blocks = nn.ModuleList(SPAB(channels, n, conv, gate) for n in architecture.convs)
        self.tail = Tail(channels, architecture.scale, conv)
        self.concat_activation = architecture.concat_last == "activation"
        norm = architecture.normalization
        self.img_range = None if norm is None else norm.img_range
        mean = torch.tensor((0.0, 0.0, 0.0) if norm is None else norm.mean).view(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)

    @property
    def scale(self) -> int:
        return self.architecture.scale

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x, {len(self.blocks): self.tail})[0]

    def outputs(self, x: Tensor, tails: Mapping[int, Tail]) -> list[Tensor]:
        """The output of each tail, in one pass; its key is the number of blocks before it."""
        if self.img_range is not None:
            x = (x - self.mean) * self.img_range
        head = first = last = self.head(x)
        results = []
        for depth, block in enumerate(self.blocks, 1):
            last, activation = block(last)
            if depth == 1:
                first = last
            if depth in tails:
                extra = activation if self.concat_activation else last
                results.append(tails[depth](head, last, first, extra))
        return results
