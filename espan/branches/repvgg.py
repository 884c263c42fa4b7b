"""RepVGG's convolution (Ding et al., 2021), with biases in place of batch normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.branches._common import (
    check_kernel,
    check_sizes,
    collapsed,
    kernel_of,
    multiply_,
    set_,
    zero_,
)
from espan.reparameterize import Kernel, add, identity


class RepVGGConv(nn.Module):
    """``k x k + 1x1 + identity``; as in the original, the identity only if in == out.

    Args:
        in_channels, out_channels, kernel: of the convolution that it replaces.

    Raises:
        EspanError: an even kernel, or no channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        check_sizes(in_channels, out_channels, kernel)
        self.wide = nn.Conv2d(in_channels, out_channels, kernel)
        self.point = nn.Conv2d(in_channels, out_channels, 1)
        self.has_identity = in_channels == out_channels

    def merged(self, dtype: torch.dtype | None = None) -> Kernel:
        """The kernel equal to all branches, in `dtype` (default: that of the parameters)."""
        wide, point = kernel_of(self.wide, dtype), kernel_of(self.point, dtype)
        if self.has_identity:
            point = add(point, identity(point.weight))
        return add(wide, point)

    def forward(self, x: Tensor) -> Tensor:
        return collapsed(self, x)

    def branches(self, x: Tensor) -> Tensor:
        """The same by parallel branches.  Each pads first, so that biases apply at the border."""
        y = self.wide(F.pad(x, [self.wide.kernel_size[0] // 2] * 4)) + self.point(x)
        return y + x if self.has_identity else y

    @torch.no_grad()
    def add_(self, kernel: Kernel) -> None:
        """Add a kernel to the merged one, in the wide branch."""
        set_(self.wide, add(kernel_of(self.wide, None), kernel))

    @torch.no_grad()
    def scale_(self, factor: Tensor | float) -> None:
        """Multiply the output by a factor; the 1x1 takes the identity's part."""
        multiply_(factor, self.wide, self.point)
        if self.has_identity:
            self.point.weight.add_((factor - 1) * identity(self.point.weight).weight)

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Make `kernel` the merged one, bit for bit: it becomes the wide branch.

        The 1x1 becomes minus the identity, or zero where there is none.
        """
        check_kernel(kernel, self.wide.weight)
        set_(self.wide, kernel)
        zero_(self.point)
        if self.has_identity:
            self.point.weight.sub_(identity(self.point.weight).weight)
