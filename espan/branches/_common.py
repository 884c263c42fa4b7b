"""Checks and helpers that all re-parameterised convolutions share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.errors import EspanError
from espan.reparameterize import Kernel, Reparameterized
from espan_kernels import conv3x3


def check_sizes(in_channels: int, out_channels: int, kernel: int) -> None:
    if min(in_channels, out_channels) < 1:
        raise EspanError(f"channels must be at least 1, got {in_channels} in, {out_channels} out")
    if kernel < 1 or kernel % 2 == 0:
        raise EspanError(f"kernel must be odd and at least 1, got {kernel}")


def check_kernel(kernel: Kernel, weight: Tensor) -> None:
    """Raise EspanError unless `kernel` fits a convolution with weights like `weight`."""
    if kernel.weight.shape != weight.shape or kernel.bias.shape != weight.shape[:1]:
        raise EspanError(
            f"expected a kernel of shape {tuple(weight.shape)} and a bias of ({weight.shape[0]},), "
            f"got {tuple(kernel.weight.shape)} and {tuple(kernel.bias.shape)}"
        )


def kernel_of(conv: nn.Conv2d, dtype: torch.dtype | None) -> Kernel:
    """The kernel of a convolution, in `dtype` (default: that of the convolution)."""
    weight = conv.weight.to(dtype=dtype)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.to(dtype=dtype)
    return Kernel(weight, bias)


def set_(conv: nn.Conv2d, kernel: Kernel) -> None:
    conv.weight.copy_(kernel.weight)
    if conv.bias is not None:
        conv.bias.copy_(kernel.bias)
    elif kernel.bias.any():
        raise EspanError("this convolution has no bias, but the kernel has one")


def zero_(*convs: nn.Conv2d) -> None:
    for conv in convs:
        conv.weight.zero_()
        if conv.bias is not None:
            conv.bias.zero_()


def multiply_(factor: Tensor | float, *convs: nn.Conv2d) -> None:
    for conv in convs:
        conv.weight.mul_(factor)
        if conv.bias is not None:
            conv.bias.mul_(factor)


def collapsed(conv: Reparameterized, x: Tensor) -> Tensor:
    """One convolution with the merged kernel.

    Autocast is disabled for the merge: in bf16 each product of kernels would be rounded, and the
    many small casts would take a seventh of a training step.
    """
    with torch.autocast(x.device.type, enabled=False):
        kernel = conv.merged()
    width = kernel.weight.shape[-1]
    return conv3x3(x, *kernel) if width == 3 else F.conv2d(x, *kernel, padding=width // 2)
