"""RepMBConv, PlainUSR's re-parameterisable MobileNetV3 block (Wang et al., 2024)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.branches.rrrb import RRRBConv
from espan.reparameterize import Kernel


class RepMBConv(RRRBConv):
    """``x + reduce(h + a * feature(h))``: an RRRB with an attention over the channels of the k x k.

    The attention ``a = sigmoid(W2 silu(W1 t))`` depends on parameters only, so it can be merged.
    In the original it is meant to start at 0.5, but W1 and W2 are filled with ones, so that it
    starts at 1 in fp32, where the sigmoid has no gradient.  Here W2 starts at 0, which gives 0.5.

    Args:
        in_channels, out_channels, kernel: of the convolution that it replaces.

    Raises:
        EspanError: an even kernel, or no channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel)
        middle = self.feature.out_channels
        hidden = max(1, middle // 4)
        self.attended = nn.Parameter(torch.full((middle,), 0.1))
        self.squeeze = nn.Linear(middle, hidden, bias=False)
        self.excite = nn.Linear(hidden, middle, bias=False)
        nn.init.zeros_(self.excite.weight)

    def gains(self, dtype: torch.dtype | None = None) -> Tensor:
        """(middle,): the attention."""
        squeezed = F.silu(self.squeeze.weight.to(dtype=dtype) @ self.attended.to(dtype=dtype))
        return torch.sigmoid(self.excite.weight.to(dtype=dtype) @ squeezed)

    @torch.no_grad()
    def absorb(self, kernel: Kernel) -> None:
        """Make `kernel` the merged one, bit for bit: as in an RRRB, with an attention of 0.5."""
        self.excite.weight.zero_()
        super().absorb(kernel)
