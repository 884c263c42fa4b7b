"""EDBB, the edge-enhanced diverse branch block of EFDN (Wang, 2022), with all of its branches."""

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
from espan.errors import EspanError
from espan.reparameterize import Kernel, add, compose, identity

_SOBEL = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
_LAPLACIAN = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


class EdgeFilter(nn.Module):
    """A 1x1, then a fixed 3x3 filter of each channel, times a learned scale, plus a bias.

    (N, in, H + 2, W + 2), already padded -> (N, out, H, W).
    """

    taps: Tensor

    def __init__(self, in_channels: int, out_channels: int, taps: Tensor) -> None:
        super().__init__()
        # The original has a bias here, which has no effect: the taps of every filter sum to 0.
        self.point = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        # Small initial values, as in the original.
        self.scale = nn.Parameter(1e-3 * torch.randn(out_channels))
        self.bias = nn.Parameter(1e-3 * torch.randn(out_channels))
        self.register_buffer("taps", taps.clone(), persistent=False)

    def forward(self, padded: Tensor) -> Tensor:
        weight = self.scale.view(-1, 1, 1, 1) * self.taps
        return F.conv2d(self.point(padded), weight, self.bias, groups=self.scale.numel())

    def merged(self, dtype: torch.dtype | None) -> Kernel:
        point, scale = self.point.weight.to(dtype=dtype), self.scale.to(dtype=dtype)
        # The product of a diagonal kernel and the 1x1.
        weight = scale.view(-1, 1, 1, 1) * point * self.taps.to(dtype=dtype)
        return Kernel(weight, self.bias.to(dtype=dtype))


class EDBBConv(nn.Module):
    """``k x k + 1x1 + identity + (1x1 - k x k)`` and, each after a 1x1, two Sobels and a Laplacian.

    As in the original, there is an identity only if in == out.  Between the 1x1 and the k x k there
    are twice as many channels as at the output, which the original recommends for small networks.
    The filters are 3x3, also if the kernel is wider.

    Args:
        in_channels, out_channels, kernel: of the convolution that it replaces.

    Raises:
        EspanError: a kernel that is even or narrower than the filters, or no channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        check_sizes(in_channels, out_channels, kernel)
        if kernel < 3:
            raise EspanError(f"the filters of edbb need a kernel of at least 3, got {kernel}")
        self.wide = nn.Conv2d(in_channels, out_channels, kernel)
        self.point = nn.Conv2d(in_channels, out_channels, 1)
        self.expand = nn.Conv2d(in_channels, 2 * out_channels, 1)
        self.reduce = nn.Conv2d(2 * out_channels, out_channels, kernel)
        self.filters = nn.ModuleList(
            EdgeFilter(in_channels, out_channels, taps) for taps in (_SOBEL, _SOBEL.T, _LAPLACIAN)
        )
        self.has_identity = in_channels == out_channels

    def merged(self, dtype: torch.dtype | None = None) -> Kernel:
        """The kernel equal to all branches, in `dtype` (default: that of the parameters)."""
        point = kernel_of(self.point, dtype)
        if self.has_identity:
            point = add(point, identity(point.weight))
        return add(
            kernel_of(self.wide, dtype),
            point,
            compose(kernel_of(self.expand, dtype), kernel_of(self.reduce, dtype)),
            *(edges.merged(dtype) for edges in self.filters),  # type: ignore[operator]
        )

    def forward(self, x: Tensor) -> Tensor:
        return collapsed(self, x)

    def branches(self, x: Tensor) -> Tensor:
        """The same by parallel branches.  Each pads first, so that biases apply at the border."""
        padded = F.pad(x, [self.wide.kernel_size[0] // 2] * 4)
        y = self.wide(padded) + self.point(x) + self.reduce(self.expand(padded))
        for edges in self.filters:
            y = y + edges(F.pad(x, [1] * 4))
        return y + x if self.has_identity else y

    @torch.no_grad()
    def add_(self, kernel: Kernel) -> None:
        """Add a kernel to the merged one, in the wide branch."""
        set_(self.wide, add(kernel_of(self.wide, None), kernel))

    @torch.no_grad()
    def scale_(self, factor: Tensor | float) -> None:
        """Multiply the output by a factor; the 1x1 takes the identity's part."""
        multiply_(factor, self.wide, self.point, self.reduce)
        for edges in self.filters:
            edges.scale.mul_(factor)  # type: ignore[operator]
            edges.bias.mul_(factor)  # type: ignore[operator]
        if self.has_identity:
            self.point.weight.add_((factor - 1) * identity(self.point.weight).weight)

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Make `kernel` the merged one, bit for bit: it becomes the wide branch.

        The 1x1 becomes minus the identity, or zero where there is none; the k x k after a 1x1 and
        the filters' scales and biases become zero.
        """
        check_kernel(kernel, self.wide.weight)
        set_(self.wide, kernel)
        zero_(self.point, self.reduce)
        for edges in self.filters:
            edges.scale.zero_()  # type: ignore[operator]
            edges.bias.zero_()  # type: ignore[operator]
        if self.has_identity:
            self.point.weight.sub_(identity(self.point.weight).weight)
