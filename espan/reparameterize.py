"""Merging linear branches into one convolution, by pure functions that return new objects.

A merge is exact, even at the border of the image, because every branch pads *before* its first
convolution: the bias of a 1x1 then applies to padded pixels too, as in the merged kernel.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espan.errors import EspanError
from espan.models import Network
from espan.models.network import ConvFactory, Gate
from espan_kernels import reference


class Kernel(NamedTuple):
    """One convolution: weight (out, in, k, k) and bias (out,)."""

    weight: Tensor
    bias: Tensor


@runtime_checkable
class Reparameterized(Protocol):
    """A convolution of several branches, as in `espan.branches`."""

    def merged(self, dtype: torch.dtype | None = None) -> Kernel: ...

    def absorb(self, kernel: Kernel) -> None: ...

    def add_(self, kernel: Kernel) -> None: ...

    def scale_(self, factor: Tensor | float) -> None: ...


def compose(first: Kernel, second: Kernel) -> Kernel:
    """The convolution equal to `first` followed by `second`, one of which must be 1x1.

    Padding for both is applied before `first`.
    """
    if second.weight.shape[-1] == 1:
        weight = torch.einsum("om,mikl->oikl", second.weight.flatten(1), first.weight)
    elif first.weight.shape[-1] == 1:
        weight = torch.einsum("omkl,mi->oikl", second.weight, first.weight.flatten(1))
    else:
        raise ValueError(
            f"compose: one kernel must be 1x1, got {tuple(first.weight.shape)} "
            f"and {tuple(second.weight.shape)}"
        )
    # The bias of `first` is a constant image, the same under each tap of `second`.
    bias = second.bias + second.weight.sum(dim=(2, 3)) @ first.bias
    return Kernel(weight, bias)


def add(*kernels: Kernel) -> Kernel:
    """The convolution equal to the sum of parallel ones, all of odd width."""
    width = max(k.weight.shape[-1] for k in kernels)
    margins = [(width - k.weight.shape[-1]) // 2 for k in kernels]
    weights = [
        F.pad(k.weight, [margin] * 4) if margin else k.weight
        for k, margin in zip(kernels, margins, strict=True)
    ]
    # Added in turn, not stacked: merging a [4, 0] network takes 0.84 of the time.
    return Kernel(reduce(torch.add, weights), reduce(torch.add, (k.bias for k in kernels)))


def identity(like: Tensor) -> Kernel:
    """The 1x1 that returns its input; weight like `like` (out, in, 1, 1), bias zero (out,)."""
    eye = torch.eye(*like.shape[:2], dtype=like.dtype, device=like.device)
    return Kernel(eye[:, :, None, None], like.new_zeros(like.shape[0]))


def collapse(network: Network) -> Network:
    """A new plain network equal to `network`, with each re-parameterised convolution merged.

    Computed in fp64 and rounded once to the dtype of the parameters.
    """
    plain = Network(network.architecture)
    parameter = next(network.parameters())
    plain.to(device=parameter.device, dtype=parameter.dtype)
    plain.load_state_dict(merged_state(network))
    plain.record = dict(network.record)
    return plain.train(network.training)


@torch.no_grad()
def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module's convolutions by name, re-parameterised ones merged in fp64."""
    state: dict[str, Tensor] = {}
    inside: tuple[str, ...] = ()  # prefixes of the parts of merged convolutions
    for name, part in module.named_modules():
        if isinstance(part, Reparameterized):
            kernel = part.merged(torch.float64)
            state[f"{name}.weight"] = kernel.weight
            assert isinstance(part, nn.Module)
            if any(key.endswith("bias") for key, _ in part.named_parameters()):
                state[f"{name}.bias"] = kernel.bias
            inside += (f"{name}.",)
        elif isinstance(part, nn.Conv2d) and not name.startswith(inside):
            state[f"{name}.weight"] = part.weight
            if part.bias is not None:
                state[f"{name}.bias"] = part.bias
    return state


def expand(network: Network, conv: ConvFactory, *, gate: Gate = reference.gate) -> Network:
    """A new network in training form whose `collapse` is `network`, bit for bit.

    Args:
        network: a plain network, as loaded from a file; it is not modified.
        conv: creates the convolutions wider than 1x1 (`espan.branches.conv_factory`); each absorbs
            the kernel that it replaces.
        gate: of the new network; training passes the kernel, `espan_kernels.gate`.

    Raises:
        EspanError: the network is already in training form.
    """
    if any(isinstance(module, Reparameterized) for module in network.modules()):
        raise EspanError("expand: the network is already in training form; collapse it first")
    parameter = next(network.parameters())
    expanded = Network(network.architecture, conv=conv, gate=gate)
    expanded.to(device=parameter.device, dtype=parameter.dtype)
    plain = dict(network.named_modules())
    for name, module in expanded.named_modules():
        source = plain.get(name)
        if isinstance(source, nn.Conv2d):
            if isinstance(module, Reparameterized):
                bias = source.bias
                zeros = torch.zeros_like(source.weight[:, 0, 0, 0])
                module.absorb(Kernel(source.weight, zeros if bias is None else bias))
            else:
                module.load_state_dict(source.state_dict())
    expanded.record = dict(network.record)
    return expanded
