"""The merged kernels of all convolutions of a network, a few launches for all that are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espan.reparameterize import Kernel, Reparameterized
from espan.training.flat import flatten, line, shaped


@dataclass(frozen=True)
class Alike:
    """Convolutions of one kind and size.

    Attributes:
        names: of the modules.
        modules: the convolutions, plain or re-parameterised.
    """

    names: list[str]
    modules: list[nn.Module]

    @property
    def parameters(self) -> dict[str, list[Tensor]]:
        """Those of all modules, by their name in a module."""
        each = [dict(module.named_parameters()) for module in self.modules]
        return {name: [parameters[name] for parameters in each] for name in each[0]}


class Merging:
    """Merges a network's convolutions from a flat buffer of its parameters.

    Args:
        network: in training form.  Its parameters become views of the buffer.
        channels_last: layout of all kernels, of the branches and merged.

    Attributes:
        parameters: those of the network, in the order of the buffer.
        flat: the buffer, a leaf that requires a gradient.
    """

    def __init__(self, network: nn.Module, *, channels_last: bool) -> None:
        self._channels_last = channels_last
        self._alike = _alike(network)
        self.parameters = self.in_order(network)
        self.flat = flatten(self.parameters, channels_last=channels_last).requires_grad_()

    @staticmethod
    def in_order(network: nn.Module) -> list[Tensor]:
        """The parameters of a network in the order of its buffer."""
        groups = (group.parameters.values() for group in _alike(network))
        found = [p for lists in groups for alike in lists for p in alike]
        assert len(found) == len(list(network.parameters()))
        return found

    def __call__(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Weights and biases by the names of the convolutions, in `dtype`; differentiable.

        The merge is computed in the dtype of the parameters.
        """
        lists = [alike for group in self._alike for alike in group.parameters.values()]
        parts = iter(self.flat.split([len(alike) * alike[0].numel() for alike in lists]))
        layout = self._channels_last
        result: dict[str, Tensor] = {}
        for group in self._alike:
            module, count = group.modules[0], len(group.modules)
            stacks = {
                name: shaped(next(parts), p.shape, count, channels_last=layout)
                for name, p in module.named_parameters()
            }
            if isinstance(module, nn.Conv2d):
                weight, bias = stacks["weight"], stacks.get("bias")
            else:
                weight, bias = torch.vmap(_merge(module))(stacks)
            # Cast at once; the cast of each convolution's would be two launches, with its gradient.
            lines = line(weight, count, channels_last=layout).to(dtype).unbind()
            for name, one in zip(group.names, lines, strict=True):
                result[f"{name}.weight"] = shaped(one, weight.shape[1:], channels_last=layout)
            if any(name.endswith("bias") for name in stacks):  # those of SPANV2 have none
                assert bias is not None
                for name, one in zip(group.names, bias.to(dtype).unbind(), strict=True):
                    result[f"{name}.bias"] = one
        return result


class _Merged(nn.Module):
    """A convolution whose forward is its merge, for `functional_call`."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self) -> Kernel:
        assert isinstance(self.conv, Reparameterized)
        return self.conv.merged()


def _merge(conv: nn.Module) -> Callable[[dict[str, Tensor]], Kernel]:
    module = _Merged(conv)

    def merge(parameters: dict[str, Tensor]) -> Kernel:
        named = {f"conv.{name}": p for name, p in parameters.items()}
        kernel: Kernel = torch.func.functional_call(module, named)
        return kernel

    return merge


def _alike(network: nn.Module) -> list[Alike]:
    """All convolutions of a network in groups of one kind and size."""
    groups: dict[tuple[object, ...], Alike] = {}
    inside: tuple[str, ...] = ()  # prefixes of the parts of re-parameterised convolutions
    for name, module in network.named_modules():
        merged = isinstance(module, Reparameterized)
        if name.startswith(inside) or not (merged or isinstance(module, nn.Conv2d)):
            continue
        if merged:
            inside += (f"{name}.",)
        shapes = tuple((n, p.shape) for n, p in module.named_parameters())
        group = groups.setdefault((type(module), shapes), Alike([], []))
        group.names.append(name)
        group.modules.append(module)
    return list(groups.values())
