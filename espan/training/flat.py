"""Parameters in one buffer, so that a step updates all of them with a few kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def flatten(tensors: Sequence[Tensor], *, channels_last: bool) -> Tensor:
    """Move tensors into one new buffer, one after the other; each becomes a view of its part.

    With `channels_last`, the kernels of convolutions (out, in, k, k) are laid out so.  Returns the
    buffer.
    """
    with torch.no_grad():
        flat = torch.cat([line(t, channels_last=channels_last) for t in tensors])
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.data = shaped(part, tensor.shape, channels_last=channels_last)
    return flat


def shaped(part: Tensor, shape: torch.Size, *counts: int, channels_last: bool) -> Tensor:
    """A part of a buffer as a tensor of this shape, or (*counts, *shape) as so many in a row."""
    if len(shape) != 4 or not channels_last:
        return part.view(*counts, *shape)
    outputs, inputs, height, width = shape
    return part.view(*counts, outputs, height, width, inputs).movedim(-1, -3)


def line(t: Tensor, *counts: int, channels_last: bool) -> Tensor:
    """The inverse of `shaped`, for one tensor or (*counts, ...) of them: (*counts, elements)."""
    if t.ndim - len(counts) == 4 and channels_last:
        t = t.movedim(-3, -1)
    return t.reshape(*counts, -1)


class FlatAdamW:
    """The updates of an AdamW, done to a flat buffer of its parameters.

    Element by element they are those of the optimizer, whose moments become views of flat buffers.
    Learning rate and the decision to skip a step are tensors, which a CUDA graph can change.

    Args:
        optimizer: with one group; its state, new or loaded, is moved.
        parameters: those of the optimizer, in the order of the buffer.
        flat: from `flatten(parameters, channels_last=channels_last)`.
        channels_last: layout of the kernels of convolutions.

    Attributes:
        rate: (), float32: the learning rate.
        flat: the optimizer of the buffer.
    """

    def __init__(
        self,
        optimizer: torch.optim.AdamW,
        parameters: Sequence[Tensor],
        flat: Tensor,
        *,
        channels_last: bool,
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
            **{
                name: flatten([s[name] for s in states], channels_last=channels_last)
                for name in ("exp_avg", "exp_avg_sq")
            },
        }

    def write_steps(self) -> None:
        """Write the number of steps to the optimizer, before its state is saved."""
        (state,) = self.flat.state.values()
        for p in self.parameters:
            self.optimizer.state[p]["step"].copy_(state["step"])
