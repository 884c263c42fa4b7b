"""Re-parameterised convolutions: several branches in training, one convolution in inference.

Each class is constructed as ``Conv(in_channels, out_channels, kernel)``; `GRepConv` also takes
``bias=False``.  It maps (N, in, H, W) to (N, out, H, W) with zero padding of kernel // 2, and has
these methods:

* ``merged(dtype)``: the single kernel equal to all branches, also at the border; differentiable;
* ``forward``: merges the branches and runs one convolution, with the gradients of the parallel
  branches at a fraction of their cost; ``branches`` runs them in parallel, for tests;
* ``add_(kernel)`` and ``scale_(factor)``: add to the merged kernel, or multiply it;
* ``absorb(kernel)``: makes the given kernel the merged one, bit for bit, so that training can
  continue from it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal, get_args

from torch import nn

from espan.branches.edbb import EDBBConv
from espan.branches.grep import GRepConv
from espan.branches.plain import trained_plain_conv
from espan.branches.repmbconv import RepMBConv
from espan.branches.repvgg import RepVGGConv
from espan.branches.rrrb import RRRBConv
from espan.errors import EspanError
from espan.models.network import ConvFactory

Kind = Literal["plain", "grep", "repvgg", "edbb", "rrrb", "repmbconv"]


def conv_factory(
    kind: Kind, *, grep: tuple[int, int] = (2, 0), middle: int | None = None
) -> ConvFactory:
    """A factory for the convolutions of a `Network`: plain ones, or one of those in Tab. 7.

    Args:
        kind: of convolution.
        grep: [a, b] of GRep; ignored by the others.
        middle: channels between the two convolutions of a GRep sequence; default: those of its
            input.

    Raises:
        EspanError: an unknown kind.  The factory raises it for a convolution without bias, unless
            the kind is plain or grep.
    """
    makers: dict[str, ConvFactory] = {
        "plain": trained_plain_conv,
        "grep": functools.partial(GRepConv, sequences=grep, middle=middle),
    }
    for name, conv in _BIASED.items():
        makers[name] = functools.partial(_biased, name, conv)
    if kind not in makers:
        raise EspanError(f"unknown convolution {kind!r}; choose one of {', '.join(get_args(Kind))}")
    return makers[kind]


_BIASED = {
    "repvgg": RepVGGConv,
    "edbb": EDBBConv,
    "rrrb": RRRBConv,
    "repmbconv": RepMBConv,
}


def _biased(
    name: str,
    conv: Callable[[int, int, int], nn.Module],
    in_channels: int,
    out_channels: int,
    kernel: int,
    *,
    bias: bool = True,
) -> nn.Module:
    if not bias:
        raise EspanError(
            f"conv = {name!r}: its branches have biases, but the 3x3 convolutions of this network "
            "have none; use 'plain' or 'grep'"
        )
    return conv(in_channels, out_channels, kernel)


__all__ = [
    "EDBBConv",
    "GRepConv",
    "Kind",
    "RRRBConv",
    "RepMBConv",
    "RepVGGConv",
    "conv_factory",
]
