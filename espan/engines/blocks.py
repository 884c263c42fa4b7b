"""The engine for GPUs: head, each block and tail are one op each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import espan_kernels
from espan.folding import Folded
from espan.models import Architecture
from espan.models.network import cut
from espan_kernels.packing import feature_maps
from espan_kernels.spab import GATES


class Kernels(NamedTuple):
    """The ops of the parts: those of `espan_kernels`, or their Triton versions."""

    head: Callable[..., Tensor]
    spab: Callable[..., tuple[Tensor, Tensor]]
    tail: Callable[..., Tensor]
    upsample: Callable[..., Tensor]


# The most that the feature maps and the result of one call may take.
MEMORY = 2 << 30

COMPILED = Kernels(
    espan_kernels.head, espan_kernels.spab, espan_kernels.tail, espan_kernels.upsample
)


class Blocks(nn.Module):
    """Uses 16-bit feature maps and fp32 accumulation; the image may have any dtype."""

    mean: Tensor | None
    head: Tensor
    near: Tensor | None
    tail: Tensor

    def __init__(
        self,
        folded: Folded,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: Kernels = COMPILED,
    ) -> None:
        super().__init__()
        self.kernels = kernels
        self.architecture = architecture = folded.architecture
        self.head_activation = folded.head_activation
        mean = None if folded.mean is None else folded.mean.to(device, torch.float32)
        self.register_buffer("mean", mean)
        head = espan_kernels.pack_head(
            *folded.head, dtype, device, activation=folded.head_activation
        )
        self.register_buffer("head", head)
        self.near_channels = 0 if folded.near is None else len(folded.near.bias)
        near = None
        if folded.near is not None:
            near = espan_kernels.pack_head(*folded.near, dtype, device)
        self.register_buffer("near", near)
        for i, block in enumerate(folded.blocks):
            weights, biases = zip(*block.convs, strict=True)
            packed = espan_kernels.pack_spab(
                weights,
                biases,
                dtype,
                device,
                activation=architecture.activation,
                gate=block.end,
                gate_conv=block.gate_conv,
            )
            self.register_buffer(f"block{i}", packed)
        self.convs = [len(block.convs) for block in folded.blocks]
        self.register_buffer("tail", _pack_tail(folded, dtype, device))

    @staticmethod
    def can_run(architecture: Architecture, dtype: torch.dtype) -> bool:
        """Whether there are kernels: for 16-bit types, up to 64 channels, 11x11 head, scale 4.

        The scale is that of the pixel shuffle, which is larger if the image is unshuffled.
        """
        gates = GATES.get(architecture.activation, ())
        ends = {architecture.end_of_block(i) for i in range(len(architecture.convs))}
        return (
            dtype in (torch.float16, torch.bfloat16)
            and architecture.channels <= 64
            and architecture.head_kernel <= 11
            and architecture.unshuffle in (1, 2, 4)
            and architecture.tail_scale <= 4
            and ends.issubset(gates)
        )

    @property
    def most_pixels(self) -> int:
        """LR pixels that one call may have without taking more than `MEMORY`."""
        architecture = self.architecture
        channels = 5 * feature_maps.padded(architecture.channels)
        channels += feature_maps.padded(self.near_channels)
        maps = 2 * channels / architecture.unshuffle**2
        return int(MEMORY / (maps + 3 * architecture.scale**2 * 2))

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        architecture, kernels, mean = self.architecture, self.kernels, self.mean
        if image.dtype not in (torch.uint8, torch.float16, torch.bfloat16):
            image = image.float()
        channels, kernel = architecture.channels, architecture.head_kernel
        head = last = kernels.head(
            image,
            self.head,
            mean,
            channels,
            kernel,
            architecture.unshuffle,
            self.head_activation,
        )
        if self.near is not None:
            head = kernels.head(image, self.near, mean, self.near_channels, kernel)
        first, extra = last, None
        for i, convs in enumerate(self.convs):
            with_activation = architecture.concat_activation and i == len(self.convs) - 1
            last, activation = kernels.spab(
                last,
                getattr(self, f"block{i}"),
                channels,
                convs,
                with_activation,
                architecture.activation,
                architecture.end_of_block(i),
            )
            if i == 0:
                first = last
            if with_activation:
                extra = activation
        dtype = torch.uint8 if image.dtype == torch.uint8 else head.dtype
        scale = architecture.tail_scale
        if architecture.tail == "depthwise":
            return kernels.upsample(head, last, self.tail, channels, scale, dtype, flag)
        last_kernel = 3 if architecture.tail == "conv" else 1
        result = kernels.tail(
            head, first, last, extra, self.tail, channels, scale, dtype, flag, last_kernel
        )
        return result if architecture.unshuffle == 1 else cut(result, image, architecture.scale)


def _pack_tail(folded: Folded, dtype: torch.dtype, device: torch.device) -> Tensor:
    if folded.architecture.tail == "depthwise":
        near, last = folded.merged_upsample()
        bias = near.new_zeros(len(near))
        return espan_kernels.pack_upsample(near, last, bias, dtype, device)
    assert folded.last is not None
    assert folded.side is not None
    assert folded.upsample is not None
    return espan_kernels.pack_tail(
        folded.last.weight,
        folded.side,
        folded.last.bias,
        folded.upsample.weight,
        folded.upsample.bias,
        dtype,
        device,
    )
