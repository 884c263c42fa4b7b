"""The weights of a plain network, folded for inference: adjacent linear operations are merged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espan.errors import EspanError
from espan.models import Architecture, Network
from espan.models.architecture import BlockEnd
from espan.reparameterize import Kernel, add, compose, identity


@dataclass(frozen=True)
class FoldedBlock:
    """A block: 3x3 convolutions with the network's activation between them, and its end.

    Attributes:
        convs: (C, C, 3, 3) each.
        end: of the result h of the last convolution and the block's input x: ``"sigmoid"``,
            (x + h) (sigmoid(h) - 1/2); ``"linear"``, (x + h) gate_conv(h); ``"tanh"``, (x + h)
            tanh(gate_conv(h)); ``"none"``, h; ``"act"``, activation(h).
        gate_conv: (C, C, 1, 1), for ``"linear"`` and ``"tanh"``.
    """

    convs: tuple[Kernel, ...]
    end: BlockEnd
    gate_conv: Kernel | None


@dataclass(frozen=True)
class Folded:
    """The kernels of a network, in fp64 on the CPU.  All foldings are exact, at the border too.

    Attributes:
        architecture: of the network.
        mean: (3,), to be subtracted from the image before the zero padding of `head` and `near`, or
            None.  It is not folded into their biases, because the result would be wrong at the
            border: there the padding has the mean colour.
        head: (C, 3*u*u, k, k), with `img_range` folded in: of the image, unshuffled by u.  If the
            first block takes the image, its first convolution; the network's activation follows.
        near: if the first block takes the image, one more 3x3 of it: for the tail ``"depthwise"``
            (3*s*s, 3, 3, 3), otherwise (C, 3, 3, 3), with its part of the concat's 1x1 folded in.
        blocks: without the convolution that is `head`.
        last: (C, C, 3, 3), for the tail ``"pointwise"`` (C, C, 1, 1): all from the last block's
            output to the concat's 1x1.
        side: (C, n*C, 1, 1): the 1x1, applied to the other operands of the concat: the head (or
            `near`, for which it is the identity), the first block and, if the architecture's
            `concat_activation`, the first activation of the last block.  Its bias is in `last`.
        upsample: (3*s*s, C, 3, 3), with s*u for s if the image is unshuffled.
        depthwise, pointwise: the tail ``"depthwise"`` instead of these three, (3*s*s + C, 1, 3, 3)
            and (3*s*s, 3*s*s + C, 1, 1); otherwise None.  `merged_upsample` is their product.
    """

    architecture: Architecture
    mean: Tensor | None
    head: Kernel
    near: Kernel | None
    blocks: tuple[FoldedBlock, ...]
    last: Kernel | None = None
    side: Tensor | None = None
    upsample: Kernel | None = None
    depthwise: Tensor | None = None
    pointwise: Tensor | None = None

    @property
    def head_activation(self) -> str:
        """What follows `head`: ``"none"``, or the network's activation."""
        return self.architecture.activation if self.architecture.has_near else "none"

    def merged_upsample(self) -> tuple[Tensor, Tensor]:
        """The tail ``"depthwise"`` as a 3x3: the parts for `near` and for the last block.

        (3*s*s, 3*s*s, 3, 3) and (3*s*s, C, 3, 3), without bias.
        """
        assert self.depthwise is not None
        assert self.pointwise is not None
        merged = self.pointwise * self.depthwise.transpose(0, 1)
        of_near, of_last = merged.split((len(merged), self.architecture.channels), dim=1)
        return of_near, of_last


def fold(network: Network) -> Folded:
    """Fold a plain network.  Raises EspanError for one in training form."""
    architecture = network.architecture
    norm = architecture.normalization
    img_range = 1.0 if norm is None else norm.img_range
    blocks = [_block(block) for block in network.blocks]
    if architecture.has_near:
        head, near = blocks[0].convs[0], _dense(network.near)
        near = Kernel(near.weight * img_range, near.bias)
        blocks[0] = FoldedBlock(blocks[0].convs[1:], blocks[0].end, None)
    else:
        head, near = _kernel(network.head), None
    head = Kernel(head.weight * img_range, head.bias)
    mean = None if norm is None else torch.tensor(norm.mean, dtype=torch.float64, device="cpu")
    tail = network.tail
    if architecture.tail == "depthwise":
        depthwise, pointwise = (_kernel(conv).weight for conv in (tail.depthwise, tail.pointwise))
        return Folded(
            architecture,
            mean,
            head,
            near,
            tuple(blocks),
            depthwise=depthwise,
            pointwise=pointwise,
        )

    channels = architecture.channels
    fuse = _kernel(tail.fuse)
    operands = [fuse.weight.shape[1] - (3 if tail.with_extra else 2) * channels]
    of_head, of_last, of_first, *of_extra = fuse.weight.split(
        operands + [channels] * (3 if tail.with_extra else 2), dim=1
    )
    if near is not None:
        near = compose(near, Kernel(of_head, torch.zeros_like(fuse.bias)))
        of_head = identity(of_first).weight
    last = Kernel(of_last, fuse.bias)
    if architecture.tail == "conv":
        last = compose(_kernel(tail.post), last)
    side = [of_head, of_first]
    if architecture.concat_activation:
        side += of_extra
    elif of_extra:
        last = add(last, Kernel(of_extra[0], torch.zeros_like(fuse.bias)))
    return Folded(
        architecture,
        mean,
        head,
        near,
        tuple(blocks),
        last=last,
        side=torch.cat(side, dim=1),
        upsample=_kernel(tail.upsample),
    )


def _block(block: Any) -> FoldedBlock:
    gate_conv = _kernel(block.gate_conv) if block.end in ("linear", "tanh") else None
    return FoldedBlock(tuple(_kernel(conv) for conv in block.convs), block.end, gate_conv)


def _kernel(conv: nn.Module | Tensor) -> Kernel:
    if not isinstance(conv, nn.Conv2d):
        raise EspanError(
            f"expected a plain network, found a {type(conv).__name__}; "
            "espan.reparameterize.collapse returns one"
        )
    weight = conv.weight.detach().to("cpu", torch.float64)
    if conv.bias is None:
        return Kernel(weight, weight.new_zeros(len(weight)))
    return Kernel(weight, conv.bias.detach().to("cpu", torch.float64))


def _dense(conv: Any) -> Kernel:
    """A grouped convolution with one input for each group, as one of all inputs."""
    weight, bias = _kernel(conv)
    groups = conv.groups
    dense = weight.new_zeros(len(weight), groups, *weight.shape[2:])
    outputs = torch.arange(len(weight), device="cpu")
    dense[outputs, outputs * groups // len(weight)] = weight[:, 0]
    return Kernel(dense, bias)
