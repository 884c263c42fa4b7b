"""EDBB, the edge-enhanced diverse branch block of EFDN (Wang, 2022), with all of its branches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.branches._common import kernel_of, multiply_, zero_
from espan.branches.repvgg import RepVGGConv
from espan.errors import EspanError
from espan.reparameterize import Kernel, add, compose

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


class EDBBConv(RepVGGConv):
    """RepVGG's branches, ``1x1 - k x k`` and, each after a 1x1, two Sobels and a Laplacian.

    Between the 1x1 and the k x k there are twice as many channels as at the output, which the
    original recommends for small networks.  The filters are 3x3 even if the kernel is wider.

    Args:
        in_channels, out_channels, kernel: of the convolution that it replaces.

    Raises:
        EspanError: a kernel that is even or narrower than the filters, or no channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel)
        if kernel < 3:
            raise EspanError(f"the filters of edbb need a kernel of at least 3, got {kernel}")
        self.expand = nn.Conv2d(in_channels, 2 * out_channels, 1)
        self.reduce = nn.Conv2d(2 * out_channels, out_channels, kernel)
        self.filters = nn.ModuleList(
            EdgeFilter(in_channels, out_channels, taps) for taps in (_SOBEL, _SOBEL.T, _LAPLACIAN)
        )

    def merged(self, dtype: torch.dtype | None = None) -> Kernel:
        """The kernel equal to all branches, in `dtype` (default: that of the parameters)."""
        return add(
            super().merged(dtype),
            compose(kernel_of(self.expand, dtype), kernel_of(self.reduce, dtype)),
            *(edges.merged(dtype) for edges in self.filters),  # type: ignore[operator]
        )

    def branches(self, x: Tensor) -> Tensor:
        """The same by parallel branches.  Each pads first, so that biases apply at the border."""
        y = super().branches(x)
        y = y + self.reduce(self.expand(F.pad(x, [self.wide.kernel_size[0] // 2] * 4)))
        for edges in self.filters:
            y = y + edges(F.pad(x, [1] * 4))
        return y

    @torch.no_grad()
    def scale_(self, factor: Tensor | float) -> None:
        """Multiply the output by a factor; the 1x1 takes the identity's part."""
        super().scale_(factor)
        multiply_(factor, self.reduce)
        for edges in self.filters:
            edges.scale.mul_(factor)  # type: ignore[operator]
            edges.bias.mul_(factor)  # type: ignore[operator]

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Make `kernel` the merged one, bit for bit, as RepVGG does.

        The k x k after a 1x1 and the scales and biases of the filters become zero.
        """
        super().absorb(kernel)
        zero_(self.reduce)
        for edges in self.filters:
            edges.scale.zero_()  # type: ignore[operator]
            edges.bias.zero_()  # type: ignore[operator]
