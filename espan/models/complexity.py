"""The cost of a network, counted as in the NTIRE challenge and the paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from espan.models.architecture import Architecture
from espan.models.network import Network


@dataclass(frozen=True)
class Complexity:
    """Counts for one image of `height` x `width` LR pixels.

    `macs` are the multiply-adds and `activations` the output values of all convolutions.
    `receptive_radius` is in LR pixels.
    """

    parameters: int
    macs: int
    activations: int
    receptive_radius: int
    height: int
    width: int


def complexity(architecture: Architecture, height: int = 256, width: int = 256) -> Complexity:
    """Count parameters, multiply-adds and activations (Tab. 2 to 4 use 256x256)."""
    with torch.device("meta"):
        network = Network(architecture)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    u = architecture.unshuffle
    pixels = -(-height // u) * -(-width // u)  # of every convolution
    return Complexity(
        parameters=sum(p.numel() for p in network.parameters()),
        macs=sum(c.weight.numel() for c in convs) * pixels,
        activations=sum(c.out_channels for c in convs) * pixels,
        receptive_radius=architecture.receptive_radius,
        height=height,
        width=width,
    )
