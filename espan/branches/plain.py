"""A plain 3x3 convolution that trains with espan's kernels on a CPU."""

from __future__ import annotations

from torch import Tensor, nn

from espan.models.network import plain_conv
from espan_kernels import conv3x3


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zero padding of 1, computed by `espan_kernels.conv3x3`."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return conv3x3(x, self.weight, self.bias)


def trained_plain_conv(
    in_channels: int, out_channels: int, kernel: int, *, bias: bool = True
) -> nn.Module:
    """A kernel x kernel convolution with zero padding of kernel // 2."""
    if kernel == 3:
        return Conv3x3(in_channels, out_channels, bias=bias)
    return plain_conv(in_channels, out_channels, kernel, bias=bias)
