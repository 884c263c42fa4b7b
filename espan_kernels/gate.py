"""SPAB's gate as an op: its wrapper, its shape for the compiler, its gradient."""

from typing import Any

import torch
from torch import Tensor

from espan_kernels import _library  # noqa: F401  (defines torch.ops.espan)
from espan_kernels._checks import check_gate


def gate(o: Tensor, x: Tensor) -> Tensor:
    """``y = (o + x) * (sigmoid(o) - 1/2)``, computed in one pass over memory.

    The parameter-free attention of SPAN with its residual connection (Wan et al., *Swift
    Parameter-free Attention Network for Efficient Super-Resolution*, 2023): ``o`` is the output of
    a block's last convolution, ``x`` the block's input.  Equivalent to
    :func:`espan_kernels.reference.gate`; arithmetic is float32 for the 16-bit types.

    Args:
        o: any shape, also empty, in any memory layout; float32, float16, bfloat16 or float64.
        x: of the shape, dtype and device of ``o``: nothing is broadcast.  Under autocast the
            dtypes may differ and the wider one is used, as PyTorch's own pointwise ops do.

    Returns:
        A tensor like ``o``, with its strides if it has no gaps (as ``torch.empty_like``).  Where
        both inputs have the same strides and no gaps, nothing is copied.

    Raises:
        RuntimeError: a dtype that is not floating-point, or ``x`` that does not match ``o``; and in
            the backward pass, if a second derivative is asked for.
    """
    if o.dtype != x.dtype and _in_autocast(o.device.type):
        wider = torch.promote_types(o.dtype, x.dtype)
        o, x = o.to(wider), x.to(wider)
    return torch.ops.espan.gate(o, x)


def _in_autocast(device_type: str) -> bool:
    available = torch.amp.is_autocast_available(device_type)  # else the next line would raise
    return available and torch.is_autocast_enabled(device_type)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "espan::gate has no second derivative; espan_kernels.reference.gate has one, by autograd"
    )


def register_gradient(namespace: str) -> None:
    """Make ``namespace::gate`` differentiable once, by ``namespace::gate_backward``."""
    ops = getattr(torch.ops, namespace)

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return ops.gate_backward(grad, *ctx.saved_tensors)

    torch.library.register_autograd(f"{namespace}::gate", backward, setup_context=_save_inputs)
    torch.library.register_autograd(f"{namespace}::gate_backward", _no_second_derivative)


@torch.library.register_fake("espan::gate")
def _(o: Tensor, x: Tensor) -> Tensor:
    check_gate("espan::gate", o, x=x)
    return torch.empty_like(o)


@torch.library.register_fake("espan::gate_backward")
def _(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    check_gate("espan::gate_backward", o, x=x, grad=grad)
    return torch.empty_like(o), torch.empty_like(o)


register_gradient("espan")
