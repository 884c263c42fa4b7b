"""SPAB's gate as an op: function, gradient, fake kernels, reference kernels."""

from typing import Any

import torch
from torch import Tensor

from espan_kernels import _library, reference
from espan_kernels._checks import check_gate


def gate(o: Tensor, x: Tensor) -> Tensor:
    """Compute ``(o + x) * (sigmoid(o) - 1/2)`` in one pass over memory.

    This is the parameter-free attention of SPAN together with its residual connection (Wan et al.,
    *Swift Parameter-free Attention Network for Efficient Super-Resolution*, 2023): ``o`` is the
    output of a block's last convolution, ``x`` the block's input.  Equivalent to
    :func:`espan_kernels.reference.gate`, which also computes forward-mode derivatives.  Arithmetic
    is float32 for 16-bit types.

    Args:
        o: a tensor of any shape and memory layout, possibly empty; float32, float16, bfloat16 or
            float64.
        x: a tensor with the shape, dtype and device of ``o``; it is not broadcast.  Under autocast
            the dtypes may differ and the wider one is used, as in PyTorch's own pointwise ops.

    Returns:
        A tensor like ``o``, with the strides of ``torch.empty_like(o)``.  If both inputs have the
        same strides without gaps, nothing is copied.

    Raises:
        RuntimeError: if a dtype is not floating-point or ``x`` does not match ``o``; in the
            backward pass, if a second derivative is requested.
    """
    o, x = _library.promote_under_autocast(o, x)
    if _library.has_tangent(o, x):
        return reference.gate(o, x)
    return torch.ops.espan.gate(o, x)


def gate_by_reference(o: Tensor, x: Tensor) -> Tensor:
    """torch.ops.espan.gate in plain PyTorch."""
    check_gate("espan::gate", o, x=x)
    return _library.strides_like(o, reference.gate(o, x))


def gate_backward_by_reference(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """torch.ops.espan.gate_backward in plain PyTorch."""
    check_gate("espan::gate_backward", o, x=x, grad=grad)
    grad_o, grad_x = reference.gate_backward(grad, o, x)
    return _library.strides_like(o, grad_o), _library.strides_like(o, grad_x)


def _save_inputs(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "espan::gate has no second derivative; espan_kernels.reference.gate has one, by autograd"
    )


def register_gradient(namespace: str) -> None:
    """Make ``namespace::gate`` differentiable once, using ``namespace::gate_backward``."""
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
_library.implement("gate", gate_by_reference)
_library.implement("gate_backward", gate_backward_by_reference)
