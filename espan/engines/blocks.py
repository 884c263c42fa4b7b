"""The engine for GPUs: head, each block and tail are one op each."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import espan_kernels
from espan.folding import Folded
from espan.models import Architecture
from espan_kernels.packing import feature_maps


class Kernels(NamedTuple):
    """The ops of the parts: those of `espan_kernels`, or their Triton versions."""

    head: Callable[[Tensor, Tensor, Tensor | None, int, int], Tensor]
    spab: Callable[[Tensor, Tensor, int, int, bool], tuple[Tensor, Tensor]]
    tail: Callable[..., Tensor]


# The most that the feature maps and the result of one call may take.
MEMORY = 2 << 30

COMPILED = Kernels(espan_kernels.head, espan_kernels.spab, espan_kernels.tail)


class Blocks(nn.Module):
    """Uses 16-bit feature maps and fp32 accumulation; the image may have any dtype."""

    mean: Tensor | None
    head: Tensor
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
        self.architecture = folded.architecture
        mean = None if folded.mean is None else folded.mean.to(device, torch.float32)
        self.register_buffer("mean", mean)
        self.register_buffer("head", espan_kernels.pack_head(*folded.head, dtype, device))
        for i, block in enumerate(folded.blocks):
            weights, biases = zip(*block.convs, strict=True)
            packed = espan_kernels.pack_spab(weights, biases, dtype, device)
            self.register_buffer(f"block{i}", packed)
        assert folded.last is not None
        assert folded.side is not None
        assert folded.upsample is not None
        tail = espan_kernels.pack_tail(
            folded.last.weight,
            folded.side,
            folded.last.bias,
            folded.upsample.weight,
            folded.upsample.bias,
            dtype,
            device,
        )
        self.register_buffer("tail", tail)

    @staticmethod
    def can_run(architecture: Architecture, dtype: torch.dtype) -> bool:
        """Whether there are kernels: for 16-bit types, up to 64 channels, 11x11 head, scale 4.

        And for SPAN and ESPAN; the other members of the family run on `Composed`.
        """
        return (
            (architecture.activation, architecture.gate) == ("silu", "sigmoid")
            and (architecture.unshuffle, architecture.stem) == (1, "conv")
            and architecture.tail == "conv"
            and dtype in (torch.float16, torch.bfloat16)
            and architecture.channels <= 64
            and architecture.head_kernel <= 11
            and architecture.scale <= 4
        )

    @property
    def most_pixels(self) -> int:
        """LR pixels that one call may have without taking more than `MEMORY`."""
        maps = 5 * 2 * feature_maps.padded(self.architecture.channels)
        return MEMORY // (maps + 3 * self.architecture.scale**2 * 2)

    def forward(self, image: Tensor, flag: Tensor) -> Tensor:
        architecture = self.architecture
        channels = architecture.channels
        concat_activation = architecture.concat_last == "activation"
        head = self.kernels.head(image, self.head, self.mean, channels, architecture.head_kernel)
        first = last = activation = head
        for i, convs in enumerate(architecture.convs):
            with_activation = concat_activation and i == len(architecture.convs) - 1
            packed = getattr(self, f"block{i}")
            last, activation = self.kernels.spab(last, packed, channels, convs, with_activation)
            if i == 0:
                first = last
        extra = activation if concat_activation else None
        dtype = torch.uint8 if image.dtype == torch.uint8 else head.dtype
        return self.kernels.tail(
            head, first, last, extra, self.tail, channels, architecture.scale, dtype, flag
        )
