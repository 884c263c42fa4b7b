"""GRep, the paper's general re-parameterised convolution (Sec. 3.2, Fig. 2), trained collapsed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.reparameterize import Kernel, add, compose


class GRepConv(nn.Module):
    """``k x k + 1x1 + a * (1x1 - k x k) + b * (k x k - 1x1)``, written [a, b] (Eq. 5).

    `forward` merges the branches into one kernel, differentiably, and runs one convolution: the
    gradients are those of the parallel branches at a fraction of the cost.  `branches` runs them
    in parallel, which is what the tests compare with.

    Args:
        in_channels, out_channels, kernel: of the convolution it stands for; padding kernel // 2.
        sequences: (a, b), how many of each kind of sequence.
    The channels between the two convolutions of a sequence are as many as at its input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        sequences: tuple[int, int] = (2, 0),
    ) -> None:
        super().__init__()
        self.padding = kernel // 2
        wide_last, wide_first = sequences
        self.wide = nn.Conv2d(in_channels, out_channels, kernel)
        self.point = nn.Conv2d(in_channels, out_channels, 1)
        self.sequences = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, in_channels, first),
                nn.Conv2d(in_channels, out_channels, second),
            )
            for first, second in [(1, kernel)] * wide_last + [(kernel, 1)] * wide_first
        )

    def merged(self, dtype: torch.dtype | None = None) -> Kernel:
        """The one kernel equal to all branches, computed in `dtype` (default: the parameters')."""

        def kernel(conv: nn.Module) -> Kernel:
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            return Kernel(conv.weight.to(dtype=dtype), conv.bias.to(dtype=dtype))

        return add(
            kernel(self.wide),
            kernel(self.point),
            *(compose(kernel(s[0]), kernel(s[1])) for s in self.sequences),  # type: ignore[index]
        )

    def forward(self, x: Tensor) -> Tensor:
        # The merge stays out of autocast: in bf16 each product of kernels would be rounded, and its
        # many small casts take a seventh of a training step.
        with torch.autocast(x.device.type, enabled=False):
            kernel = self.merged()
        return F.conv2d(x, *kernel, padding=self.padding)

    def branches(self, x: Tensor) -> Tensor:
        """The same by parallel branches: each pads first, so that biases pass the border alike."""
        padded = F.pad(x, [self.padding] * 4)
        y = self.wide(padded) + self.point(x)
        for sequence in self.sequences:
            y = y + sequence(padded)
        return y
