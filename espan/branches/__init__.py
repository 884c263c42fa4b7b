"""Re-parameterised convolutions: several branches in training, one convolution afterwards.

Each class is made as ``Conv(in_channels, out_channels, kernel)`` and maps (N, in, H, W) to
(N, out, H, W) with zero padding of kernel // 2, and has

* ``merged(dtype)``: the one kernel equal to its branches, at the border too; differentiable;
* ``forward``: merges and runs one convolution, whose gradients are those of the parallel branches
  at a fraction of the cost; ``branches``: runs them in parallel, which tests compare with;
* ``add_(kernel)`` and ``scale_(factor)``: change the merged kernel by a sum or a product;
* ``absorb(kernel)``: makes a given kernel the merged one, bit for bit, from where the branches
  can be trained on.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

from espan.branches.edbb import EDBBConv
from espan.branches.grep import GRepConv
from espan.branches.repmbconv import RepMBConv
from espan.branches.repvgg import RepVGGConv
from espan.branches.rrrb import RRRBConv
from espan.errors import EspanError
from espan.models.network import ConvFactory, plain_conv

Kind = Literal["plain", "grep", "repvgg", "edbb", "rrrb", "repmbconv"]


def conv_factory(
    kind: Kind, *, grep: tuple[int, int] = (2, 0), middle: int | None = None
) -> ConvFactory:
    """What makes the convolutions of a `Network`: plain ones, or those that Tab. 7 compares.

    Args:
        kind: which.
        grep: [a, b] of GRep; the others have no such option.
        middle: the width of GRep's sequences between their two convolutions; default: that of
            their input.

    Raises:
        EspanError: an unknown kind.
    """
    makers: dict[str, ConvFactory] = {
        "plain": plain_conv,
        "grep": functools.partial(GRepConv, sequences=grep, middle=middle),
        "repvgg": RepVGGConv,
        "edbb": EDBBConv,
        "rrrb": RRRBConv,
        "repmbconv": RepMBConv,
    }
    if kind not in makers:
        raise EspanError(f"unknown convolution {kind!r}; one of {', '.join(get_args(Kind))}")
    return makers[kind]


__all__ = [
    "EDBBConv",
    "GRepConv",
    "Kind",
    "RRRBConv",
    "RepMBConv",
    "RepVGGConv",
    "conv_factory",
]
