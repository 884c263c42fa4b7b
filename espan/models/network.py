"""The networks of the SPAN family as plain PyTorch modules, the reference for all other code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from espan.errors import EspanError
from espan.models.architecture import Architecture
from espan_kernels import reference

# (in_channels, out_channels, kernel) -> a kernel x kernel convolution with zero padding of
# kernel // 2, and with bias=False without bias.
ConvFactory = Callable[..., nn.Module]
Gate = Callable[[Tensor, Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[..., Tensor]] = {"silu": F.silu, "relu": F.relu, "mish": F.mish}


def plain_conv(in_channels: int, out_channels: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """A kernel x kernel convolution with zero padding of kernel // 2."""
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


@torch.fx.wrap
def unshuffled(image: Tensor, u: int) -> Tensor:
    """(N, 3, H, W) -> (N, 3*u*u, ceil(H / u), ceil(W / u)), the image extended by reflection.

    Raises EspanError for images of less than u x u pixels.
    """
    check_size(image.shape[-2:], u)
    # By indices, because torch.export cannot pad by amounts that depend on the size.
    for dim in (-2, -1):
        size = image.shape[dim]
        at = torch.arange((size + u - 1) // u * u, device=image.device)
        image = image.index_select(dim, torch.where(at < size, at, 2 * (size - 1) - at))
    return F.pixel_unshuffle(image, u)


def check_size(size: Sequence[int], unshuffle: int) -> None:
    """Raise EspanError unless a network with this `unshuffle` can take the image."""
    height, width = size
    if height < unshuffle or width < unshuffle:
        raise EspanError(
            f"the image has {height} x {width} pixels; this network takes {unshuffle} x "
            f"{unshuffle} pixels as one and needs at least that many"
        )


@torch.fx.wrap
def cut(result: Tensor, image: Tensor, scale: int) -> Tensor:
    """The part of the result that belongs to the image, without its extension."""
    height, width = (scale * side for side in image.shape[-2:])
    if torch.compiler.is_compiling():  # which cannot tell that a slice is within the result
        for dim, size in ((-2, height), (-1, width)):
            result = result.index_select(dim, torch.arange(size, device=result.device))
        return result
    return result[..., :height, :width]


class SPAB(nn.Module):
    """A block: convolutions with activations between them, then the gate.

    (N, C, H, W), or the image for a stem, -> the output and the first activation (an operand of
    SPAN's concat), both (N, C, H, W).
    """

    def __init__(
        self, architecture: Architecture, index: int, conv: ConvFactory, gate: Gate
    ) -> None:
        super().__init__()
        channels = architecture.channels
        inputs = [channels] * architecture.convs[index]
        if index == 0 and architecture.has_near:
            inputs[0] = 3
        if not architecture.bias:
            conv = functools.partial(conv, bias=False)
        self.convs = nn.ModuleList(conv(n, channels, 3) for n in inputs)
        self.activation = ACTIVATIONS[architecture.activation]
        self.end = architecture.end_of_block(index)
        self.gate = gate
        if self.end in ("linear", "tanh"):
            self.gate_conv = nn.Conv2d(channels, channels, 1)
        if self.end == "tanh":
            nn.init.zeros_(self.gate_conv.weight)
            nn.init.constant_(self.gate_conv.bias, 3.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.activation(self.convs[0](x))
        o = first
        for conv in self.convs[1:-1]:
            o = self.activation(conv(o))
        o = self.convs[-1](o)
        if self.end == "sigmoid":
            return self.gate(o, x), first
        if self.end == "linear":
            return (x + o) * self.gate_conv(o), first
        if self.end == "tanh":
            return (x + o) * torch.tanh(self.gate_conv(o)), first
        return (self.activation(o) if self.end == "act" else o), first


class Tail(nn.Module):
    """From the operands of the concat, and the last block's output, to the image."""

    def __init__(self, architecture: Architecture, conv: ConvFactory) -> None:
        super().__init__()
        channels, self.scale = architecture.channels, architecture.tail_scale
        outputs = 3 * self.scale * self.scale
        head = outputs if architecture.has_near else channels
        self.kind = architecture.tail
        self.with_extra = self.kind == "conv" or architecture.concat_activation
        if self.kind == "depthwise":
            inputs = head + channels
            self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
            self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
            return
        if self.kind == "conv":
            self.post = conv(channels, channels, 3)
        self.fuse = nn.Conv2d(head + (3 if self.with_extra else 2) * channels, channels, 1)
        self.upsample = conv(channels, outputs, 3)

    def forward(self, head: Tensor, last: Tensor, first: Tensor, extra: Tensor) -> Tensor:
        if self.kind == "depthwise":
            values = self.pointwise(self.depthwise(torch.cat([head, last], dim=1)))
            return F.pixel_shuffle(values, self.scale)
        if self.kind == "conv":
            last = self.post(last)
        operands = [head, last, first, extra] if self.with_extra else [head, last, first]
        fused = self.fuse(torch.cat(operands, dim=1))
        return F.pixel_shuffle(self.upsample(fused), self.scale)


class Network(nn.Module):
    """A network of the SPAN family: (N, 3, H, W) in 0-1 -> (N, 3, s*H, s*W), not clamped.

    Args:
        architecture: its description.
        conv: creates each convolution wider than 1x1 that is not depthwise; training passes
            re-parameterised ones.
        gate: the parameter-free gate; training passes the kernel, `espan_kernels.gate`.

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
        if architecture.has_near:
            outputs = 3 * architecture.scale * architecture.scale
            self.near = nn.Conv2d(3, outputs, 3, padding=1, groups=3, bias=False)
            nn.init.dirac_(self.near.weight, groups=outputs)  # nearest-neighbour upsampling
        else:
            inputs = 3 * architecture.unshuffle * architecture.unshuffle
            self.head = conv(inputs, architecture.channels, architecture.head_kernel)
        self.blocks = nn.ModuleList(
            SPAB(architecture, index, conv, gate) for index in range(len(architecture.convs))
        )
        self.tail = Tail(architecture, conv)
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
        architecture, image = self.architecture, x
        if self.img_range is not None:
            x = (x - self.mean) * self.img_range
        if architecture.unshuffle > 1:
            x = unshuffled(x, architecture.unshuffle)
        head = self.near(x) if architecture.has_near else self.head(x)
        first = last = x if architecture.has_near else head
        results = []
        for depth, block in enumerate(self.blocks, 1):
            last, activation = block(last)
            if depth == 1:
                first = last
            if depth in tails:
                extra = activation if architecture.concat_activation else last
                result = tails[depth](head, last, first, extra)
                if architecture.unshuffle > 1:
                    result = cut(result, image, architecture.scale)
                results.append(result)
        return results
