"""Merging linear branches into one convolution: pure functions that return new kernels and models.

A merge is exact, at the border of the image too, because every branch pads *before* its first
convolution: padded pixels then pass through a 1x1's bias just as the merged kernel sees them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.models import Network


class Kernel(NamedTuple):
    """One convolution: weight (out, in, k, k) and bias (out,)."""

    weight: Tensor
    bias: Tensor


def compose(first: Kernel, second: Kernel) -> Kernel:
    """The one convolution equal to `first` and then `second`; one of them must be 1x1.

    Padding for both comes before `first`.
    """
    if second.weight.shape[-1] == 1:
        weight = torch.einsum("om,mikl->oikl", second.weight[:, :, 0, 0], first.weight)
    elif first.weight.shape[-1] == 1:
        weight = torch.einsum("omkl,mi->oikl", second.weight, first.weight[:, :, 0, 0])
    else:
        raise ValueError(
            f"compose: one kernel must be 1x1, got {tuple(first.weight.shape)} "
            f"and {tuple(second.weight.shape)}"
        )
    # `first`'s bias is a constant image, so `second` sees the same value under each of its taps.
    bias = second.bias + second.weight.sum(dim=(2, 3)) @ first.bias
    return Kernel(weight, bias)


def add(*kernels: Kernel) -> Kernel:
    """The one convolution equal to the sum of parallel ones, of odd widths and the same centre."""
    width = max(k.weight.shape[-1] for k in kernels)
    weights = [F.pad(k.weight, [(width - k.weight.shape[-1]) // 2] * 4) for k in kernels]
    return Kernel(torch.stack(weights).sum(0), torch.stack([k.bias for k in kernels]).sum(0))


def collapse(network: Network) -> Network:
    """A new plain network equal to `network` with each re-parameterised convolution merged.

    Merged in fp64 and rounded once to the dtype of the parameters.  The input is left as it is.
    """
    plain = Network(network.architecture)
    state: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, module in network.named_modules():
            merge = getattr(module, "merged", None)
            if merge is not None:
                state[f"{name}.weight"], state[f"{name}.bias"] = merge(dtype=torch.float64)
            elif isinstance(module, nn.Conv2d) and f"{name}.weight" in plain.state_dict():
                state[f"{name}.weight"] = module.weight
                if module.bias is not None:
                    state[f"{name}.bias"] = module.bias
    reference = next(network.parameters())
    plain.to(device=reference.device, dtype=reference.dtype)
    plain.load_state_dict(state)
    plain.record = dict(network.record)
    return plain.train(network.training)
