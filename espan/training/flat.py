"""Parameters in one buffer, so that a step updates all of them with a few kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors into one new buffer, one after the other; each becomes a view of its part.

    Kernels of convolutions (out, in, k, k) are laid out channels last.  Returns the buffer.
    """
    with torch.no_grad():
        flat = torch.cat([_in_memory_order(t).reshape(-1) for t in tensors])
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.data = shaped(part, tensor.shape)
    return flat


def shaped(part: Tensor, shape: torch.Size, *counts: int) -> Tensor:
    """A part of a buffer as a tensor of this shape, or (*counts, *shape) as so many in a row."""
    if len(shape) != 4:
        return part.view(*counts, *shape)
    outputs, inputs, height, width = shape
    return part.view(*counts, outputs, height, width, inputs).movedim(-1, -3)


def _in_memory_order(t: Tensor) -> Tensor:
    return t.permute(0, 2, 3, 1) if t.ndim == 4 else t


class FlatAdamW:
    """The updates of an AdamW, done to a flat buffer of its parameters.

    Element by element they are those of the optimizer, whose moments become views of flat buffers.
    Learning rate and the decision to skip a step are tensors, which a CUDA graph can change.

    Args:
        optimizer: with one group; its state, new or loaded, is moved.
        parameters: those of the optimizer, in the order of the buffer.
        flat: from `flatten(parameters)`.

    Attributes:
        rate: (), float32: the learning rate.
        flat: the optimizer of the buffer.
    """

    def __init__(
        self, optimizer: torch.optim.AdamW, parameters: Sequence[Tensor], flat: Tensor
    ) -> None:
        self.optimizer, self.parameters = optimizer, parameters
        (group,) = optimizer.param_groups
        self.rate = torch.zeros((), device=flat.device)
        self.flat = torch.optim.AdamW(
            [flat],
            lr=self.rate,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            fused=True,
            capturable=flat.is_cuda,
        )
        step = torch.zeros((), device=flat.device)
        for p in group["params"]:
            if p not in optimizer.state:
                moments = {k: torch.zeros_like(p) for k in ("exp_avg", "exp_avg_sq")}
                optimizer.state[p] = {"step": step.clone(), **moments}
        states = [optimizer.state[p] for p in parameters]
        self.flat.state[flat] = {
            "step": states[0]["step"].to(flat.device, copy=True),
            "exp_avg": flatten([s["exp_avg"] for s in states]),
            "exp_avg_sq": flatten([s["exp_avg_sq"] for s in states]),
        }

    def write_steps(self) -> None:
        """Write the number of steps to the optimizer, before its state is saved."""
        (state,) = self.flat.state.values()
        for p in self.parameters:
            self.optimizer.state[p]["step"].copy_(state["step"])
