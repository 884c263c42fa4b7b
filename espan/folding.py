"""The weights of a plain network, folded for inference: adjacent linear operations are merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espan.errors import EspanError
from espan.models import Architecture, Network
from espan.reparameterize import Kernel, add, compose


@dataclass(frozen=True)
class Folded:
    """The kernels of a network, in fp64 on the CPU.  All foldings are exact, at the border too.

    Attributes:
        architecture: of the network.
        mean: (3,), to be subtracted from the image before the head's zero padding, or None.  It is
            not folded into the head's bias, because the result would be wrong at the border: there
            the padding has the mean colour.
        head: (C, 3, k, k), with `img_range` folded in.
        blocks: the convolutions of each block, (C, C, 3, 3).
        last: (C, C, 3, 3): the tail's 3x3, concat and 1x1, applied to the last block's output.
        side: (C, n*C, 1, 1): the 1x1, applied to the other operands of the concat: n = 2 (head,
            first block) or 3 (and the first activation of the last block).  Its bias is in `last`.
        upsample: (3*s*s, C, 3, 3).
    """

    architecture: Architecture
    mean: Tensor | None
    head: Kernel
    blocks: tuple[tuple[Kernel, ...], ...]
    last: Kernel
    side: Tensor
    upsample: Kernel


def fold(network: Network) -> Folded:
    """Fold a plain network.  Raises EspanError for one in training form."""
    architecture = network.architecture
    norm = architecture.normalization
    head = _kernel(network.head)
    if norm is not None:
        head = Kernel(head.weight * norm.img_range, head.bias)
    fuse = _kernel(network.tail.fuse)
    of_head, of_post, of_first, of_extra = fuse.weight.split(architecture.channels, dim=1)
    last = compose(_kernel(network.tail.post), Kernel(of_post, fuse.bias))
    side = [of_head, of_first]
    if architecture.concat_last == "output":
        last = add(last, Kernel(of_extra, torch.zeros_like(fuse.bias)))
    else:
        side.append(of_extra)
    return Folded(
        architecture=architecture,
        mean=None if norm is None else torch.tensor(norm.mean, dtype=torch.float64),
        head=head,
        blocks=tuple(
            tuple(_kernel(conv) for conv in block.convs)  # type: ignore[union-attr]
            for block in network.blocks
        ),
        last=last,
        side=torch.cat(side, dim=1),
        upsample=_kernel(network.tail.upsample),
    )


def _kernel(conv: nn.Module | Tensor) -> Kernel:
    if not isinstance(conv, nn.Conv2d) or conv.bias is None:
        raise EspanError(
            f"expected a plain network, found a {type(conv).__name__}; "
            "espan.reparameterize.collapse returns one"
        )
    return Kernel(*(t.detach().to("cpu", torch.float64) for t in (conv.weight, conv.bias)))
