"""SPAB's gate in Triton: torch.ops.espan_triton.gate and gate_backward.

The op, its checks and layouts are those of torch.ops.espan.gate.  float64, which only gradient
checks use, runs on the reference.
"""
# Triton does not allow the annotations of typing inside a kernel:
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from espan_kernels._checks import check_gate
from espan_kernels.gate import (
    gate_backward_by_reference,
    gate_by_reference,
    register_gradient,
)

# Four warps with 8 elements per thread: one 16-byte access for 16-bit types, two for float32.
BLOCK = 1024


@triton.jit
def _sigmoid_minus_half(o):
    """``tanh(o/2) / 2``.

    With e = exp(-|o|), this is (1 - e) / (2 (1 + e)), which loses digits near zero.  Below 0.6 the
    Taylor series is used; its first omitted term is 5e-8 of the sum there.
    """
    e = tl.exp(-tl.abs(o))
    magnitude = 0.5 * (1.0 - e) / (1.0 + e)
    z = 0.25 * o * o
    series = 0.021869489 * z - 0.053968254
    series = series * z + 0.13333333
    series = series * z - 0.33333333
    series = series * z + 1.0
    near_zero = 0.25 * o * series
    return tl.where(tl.abs(o) < 0.6, near_zero, tl.where(o < 0.0, -magnitude, magnitude))


@triton.jit
def gate_kernel(o_ptr, x_ptr, y_ptr, n, block: tl.constexpr):
    """Compute one block of ``y = (o + x) (sigmoid(o) - 1/2)`` on flat arrays of ``n`` elements."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < n
    o = tl.load(o_ptr + i, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + i, mask=inside, other=0.0).to(tl.float32)
    y = (o + x) * _sigmoid_minus_half(o)
    tl.store(y_ptr + i, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gate_backward_kernel(
    grad_ptr,
    o_ptr,
    x_ptr,
    grad_o_ptr,
    grad_x_ptr,
    n,
    block: tl.constexpr,
):
    """Compute one block of the gradients with respect to ``o`` and ``x``."""
    i = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = i < n
    g = tl.load(grad_ptr + i, mask=inside, other=0.0).to(tl.float32)
    o = tl.load(o_ptr + i, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + i, mask=inside, other=0.0).to(tl.float32)
    h = _sigmoid_minus_half(o)
    # sigmoid'(o).  1/4 - h^2 is the same, but has no correct digits left beyond |o| = 17.
    e = tl.exp(-tl.abs(o))
    slope = e / ((1.0 + e) * (1.0 + e))
    grad_o = g * (h + (o + x) * slope)
    tl.store(grad_o_ptr + i, grad_o.to(grad_o_ptr.dtype.element_ty), mask=inside)
    tl.store(grad_x_ptr + i, (g * h).to(grad_x_ptr.dtype.element_ty), mask=inside)


def _launchable(kernel: Any) -> Any:
    """``kernel`` wrapped for torch.compile, except in the interpreter, which cannot be traced."""
    return kernel if triton.knobs.runtime.interpret else wrap_triton(kernel)


def _laid_out_like(dense: Tensor, t: Tensor) -> Tensor:
    """``t`` itself if it has the memory layout of ``dense``, else a copy with that layout."""
    return t if t.stride() == dense.stride() else torch.empty_like(dense).copy_(t)


@triton_op("espan_triton::gate", mutates_args={})
def gate(o: Tensor, x: Tensor) -> Tensor:
    """See :func:`espan_kernels.gate`."""
    check_gate("espan_triton::gate", o, x=x)
    if o.dtype == torch.float64:
        return gate_by_reference(o, x)
    y = torch.empty_like(o)
    if n := o.numel():
        o, x = _laid_out_like(y, o), _laid_out_like(y, x)
        with torch.cuda.device_of(o):
            _launchable(gate_kernel)[(triton.cdiv(n, BLOCK),)](o, x, y, n, block=BLOCK)
    return y


@triton_op("espan_triton::gate_backward", mutates_args={})
def gate_backward(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of ``gate`` with respect to ``o`` and ``x``."""
    check_gate("espan_triton::gate_backward", o, x=x, grad=grad)
    if o.dtype == torch.float64:
        return gate_backward_by_reference(grad, o, x)
    grad_o, grad_x = torch.empty_like(o), torch.empty_like(o)
    if n := o.numel():
        grad, o, x = (_laid_out_like(grad_o, t) for t in (grad, o, x))
        with torch.cuda.device_of(o):
            _launchable(gate_backward_kernel)[(triton.cdiv(n, BLOCK),)](
                grad, o, x, grad_o, grad_x, n, block=BLOCK
            )
    return grad_o, grad_x


register_gradient("espan_triton")
