"""GRep, the paper's general re-parameterised convolution (Sec. 3.2, Fig. 2), trained collapsed."""

from __future__ import annotations

from functools import reduce

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
from espan.reparameterize import Kernel, add, compose


class GRepConv(nn.Module):
    """``k x k + 1x1 + a * (1x1 - k x k) + b * (k x k - 1x1)``, written [a, b] (Eq. 5).

    Args:
        in_channels, out_channels, kernel: of the convolution that it replaces.
        sequences: (a, b), the number of sequences of each kind.
        middle: channels between the two convolutions of a sequence; default: those of its input.
        bias: whether the convolutions have one, and the merged kernel.

    Raises:
        EspanError: an even kernel, a negative number of sequences, or no channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        sequences: tuple[int, int] = (2, 0),
        middle: int | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        check_sizes(in_channels, out_channels, kernel)
        if len(sequences) != 2 or min(sequences) < 0:
            raise EspanError(f"grep must be two numbers >= 0, got {sequences}")
        if middle is not None and middle < 1:
            raise EspanError(f"the middle of a sequence must have 1 channel or more, got {middle}")
        middle = middle or in_channels
        wide_last, wide_first = sequences
        self.wide = nn.Conv2d(in_channels, out_channels, kernel, bias=bias)
        self.point = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.sequences = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, middle, first, bias=bias),
                nn.Conv2d(middle, out_channels, second, bias=bias),
            )
            for first, second in [(1, kernel)] * wide_last + [(kernel, 1)] * wide_first
        )
        self.wide_last = wide_last

    def merged(self, dtype: torch.dtype | None = None) -> Kernel:
        """The kernel equal to all branches, in `dtype` (default: that of the parameters)."""
        pairs = self._pairs(dtype)
        return add(
            kernel_of(self.wide, dtype),
            kernel_of(self.point, dtype),
            *(_sum(alike) for alike in (pairs[: self.wide_last], pairs[self.wide_last :]) if alike),
        )

    def forward(self, x: Tensor) -> Tensor:
        return collapsed(self, x)

    def branches(self, x: Tensor) -> Tensor:
        """The same by parallel branches.  Each pads first, so that biases apply at the border."""
        padded = F.pad(x, [self.wide.kernel_size[0] // 2] * 4)
        y = self.wide(padded) + self.point(x)
        for sequence in self.sequences:
            y = y + sequence(padded)
        return y

    @torch.no_grad()
    def add_(self, kernel: Kernel) -> None:
        """Add a kernel to the merged one, in the wide branch."""
        set_(self.wide, add(kernel_of(self.wide, None), kernel))

    @torch.no_grad()
    def scale_(self, factor: Tensor | float) -> None:
        """Multiply the output by a factor, in the last convolution of each branch."""
        multiply_(factor, self.wide, self.point, *self._last())

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Make `kernel` the merged one, bit for bit: it becomes the wide branch.

        The 1x1 and the last convolutions of the sequences become zero; the first ones do not
        change, so that gradients reach the last ones.
        """
        check_kernel(kernel, self.wide.weight)
        set_(self.wide, kernel)
        zero_(self.point, *self._last())

    def _last(self) -> list[nn.Conv2d]:
        return [sequence[1] for sequence in self.sequences]  # type: ignore[index]

    def _pairs(self, dtype: torch.dtype | None) -> list[tuple[Kernel, Kernel]]:
        return [
            (kernel_of(sequence[0], dtype), kernel_of(sequence[1], dtype))  # type: ignore[index]
            for sequence in self.sequences
        ]


def _sum(pairs: list[tuple[Kernel, Kernel]]) -> Kernel:
    """The kernel of sequences of one kind, which together are one with a wider middle."""
    # The gradients of the biases must not be views of one tensor, as those of a stack are:
    # operations in place (clipping, accumulation) would then change each of them several times.
    first, second = zip(*pairs, strict=True)
    return compose(
        Kernel(torch.cat([k.weight for k in first]), torch.cat([k.bias for k in first])),
        Kernel(
            torch.cat([k.weight for k in second], dim=1),
            reduce(torch.add, (k.bias for k in second)),
        ),
    )
