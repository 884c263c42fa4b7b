"""What each op means, in plain PyTorch: for tests, for benchmarks, and where no kernel can run."""

import torch
from torch import Tensor


def gate(o: Tensor, x: Tensor) -> Tensor:
    """SPAB's gate, ``(o + x) * (sigmoid(o) - 1/2)``; its gradient comes by autograd.

    ``tanh(o/2) / 2`` is the same as ``sigmoid(o) - 1/2`` and keeps its digits near zero, where the
    difference, as written, loses them: worth about 2 dB of agreement in fp16.

    Args:
        o: any shape, floating-point.
        x: like ``o``.

    Returns:
        A tensor like ``o``.
    """
    return (o + x) * (0.5 * torch.tanh(0.5 * o))


def gate_backward(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of :func:`gate` with respect to ``o`` and ``x``, written out.

    With ``h = tanh(o/2) / 2``: ``grad_x = grad * h`` and
    ``grad_o = grad * (h + (o + x) * (1/4 - h**2))``.
    """
    h = 0.5 * torch.tanh(0.5 * o)
    return grad * (h + (o + x) * (0.25 - h * h)), grad * h
