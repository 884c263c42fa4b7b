"""RRRB, the re-parameterisable residual in residual block of FMEN (Du et al., 2022)."""

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
from espan.reparameterize import Kernel, add, compose, identity


class RRRBConv(nn.Module):
    """``x + reduce(h + feature(h))`` with ``h = expand(x)``; feature is k x k, the others 1x1.

    The original has in == out and twice as many channels in the middle.  Here the middle has twice
    the larger of in and out, so that any kernel can be represented, and there is an outer identity
    only if in == out.

    Args:
        in_channels, out_channels, kernel: of the convolution that it replaces.

    Raises:
        EspanError: an even kernel, or no channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        check_sizes(in_channels, out_channels, kernel)
        middle = 2 * max(in_channels, out_channels)
        self.expand = nn.Conv2d(in_channels, middle, 1)
        self.feature = nn.Conv2d(middle, middle, kernel)
        self.reduce = nn.Conv2d(middle, out_channels, 1)
        self.has_identity = in_channels == out_channels

    def gains(self, dtype: torch.dtype | None = None) -> Tensor:
        """(middle,): factors of the output of the k x k, here 1."""
        return torch.ones_like(self.feature.weight[:, 0, 0, 0], dtype=dtype)

    def merged(self, dtype: torch.dtype | None = None) -> Kernel:
        """The kernel equal to all branches, in `dtype` (default: that of the parameters)."""
        expand, reduce = kernel_of(self.expand, dtype), kernel_of(self.reduce, dtype)
        gains, feature = self.gains(dtype), kernel_of(self.feature, dtype)
        feature = Kernel(gains.view(-1, 1, 1, 1) * feature.weight, gains * feature.bias)
        around = compose(expand, Kernel(reduce.weight, torch.zeros_like(reduce.bias)))
        if self.has_identity:
            around = add(around, identity(around.weight))
        return add(compose(compose(expand, feature), reduce), around)

    def forward(self, x: Tensor) -> Tensor:
        return collapsed(self, x)

    def branches(self, x: Tensor) -> Tensor:
        """The same as a sequence.  Padding comes first, so that biases apply at the border."""
        padded = F.pad(x, [self.feature.kernel_size[0] // 2] * 4)
        feature = self.gains().view(1, -1, 1, 1) * self.feature(self.expand(padded))
        y = self.reduce(self.expand(x) + feature)
        return y + x if self.has_identity else y

    @torch.no_grad()
    def add_(self, kernel: Kernel) -> None:
        """Add a kernel to the merged one: between the inverses of the 1x1s, in the k x k."""
        width = self.feature.kernel_size[0]
        weight = F.pad(kernel.weight, [(width - kernel.weight.shape[-1]) // 2] * 4)
        into, out_of = (torch.linalg.pinv(c.weight[:, :, 0, 0]) for c in (self.expand, self.reduce))
        middle = torch.einsum("mo,oikl,in->mnkl", out_of, weight, into)
        self.feature.weight.add_(middle / self.gains().view(-1, 1, 1, 1))
        # The contribution of the expansion's bias.
        assert self.expand.bias is not None
        assert self.reduce.bias is not None
        contribution = weight.sum((2, 3)) @ into @ self.expand.bias
        self.reduce.bias.add_(kernel.bias - contribution)

    @torch.no_grad()
    def scale_(self, factor: Tensor | float) -> None:
        """Multiply the output by a factor; the k x k takes the outer identity's part."""
        multiply_(factor, self.reduce)
        if self.has_identity:
            outer = identity(self.reduce.weight[:, : self.reduce.out_channels])
            self.add_(Kernel((factor - 1) * outer.weight, outer.bias))

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Make `kernel` the merged one, bit for bit.

        The first channels of the middle become the input and the last ones the output, with the
        kernel between them; the product of the 1x1s, along the inner identity, becomes minus the
        outer identity.  What does not reach the output does not change.
        """
        expand, feature, reduce = self.expand, self.feature, self.reduce
        inputs, outputs = expand.in_channels, reduce.out_channels
        check_kernel(kernel, feature.weight[:outputs, :inputs])
        assert expand.bias is not None
        assert feature.bias is not None
        for channels in (slice(0, inputs), slice(-outputs, None)):
            expand.weight[channels] = 0
            expand.bias[channels] = 0
        expand.weight[:inputs] = identity(expand.weight[:inputs]).weight
        if self.has_identity:
            expand.weight[-outputs:] = -identity(expand.weight[-outputs:]).weight
        feature.weight[-outputs:] = 0
        gains = self.gains()[-outputs:].view(-1, 1, 1, 1)
        feature.weight[-outputs:, :inputs] = kernel.weight.to(gains) / gains
        feature.bias[-outputs:] = 0
        zero_(reduce)
        set_(reduce, Kernel(reduce.weight, kernel.bias))
        reduce.weight[:, -outputs:] = identity(reduce.weight[:, -outputs:]).weight
