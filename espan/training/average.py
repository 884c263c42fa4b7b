"""The running average of the weights that are trained."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, *, decay: float) -> None:
    """Move the average, branch by branch, towards the network after `step` steps (1, 2, ...).

    The average of merged kernels would be another: a sequence's kernel is a product of two.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))  # young averages forget the start faster
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), weight)
