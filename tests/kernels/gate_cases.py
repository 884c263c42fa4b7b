"""Inputs and checks shared by the tests of all implementations of the gate."""

from collections.abc import Callable

import torch
from torch import Tensor

from espan_kernels import reference
from tests.tolerance import assert_accurate

# Below, at and above a vector of 4, 8 and 16 lanes, and a thread's share of 16,384 elements.
SIZES = (0, 1, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 1000, 16383, 16384, 16385, 32769, 100_003)


def decades(dtype: torch.dtype) -> tuple[float, ...]:
    """Scales to test, each in its own tensor, so that larger values cannot hide lost digits.

    For float64 they end at 1; beyond that, the derivative of tanh cancels in the float64 reference.
    """
    return tuple(10.0**e for e in range(-7, 1 if dtype == torch.float64 else 4))


TINY = 1e-40  # a float32 subnormal
SPECIAL = [0.0, -0.0, TINY, -TINY, 1e-20, -1e-20, 1e-6, -1e-6, 0.6, -0.6, 17.5, -17.5]
SPECIAL += [86.9, -86.9, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4]
SPECIAL += [float("inf"), float("-inf"), float("nan")]

Gate = Callable[[Tensor, Tensor], Tensor]
GateBackward = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def inputs(
    *shape: int, dtype: torch.dtype = torch.float32, scale: float = 4.0, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """An incoming gradient, o and x."""
    generator = torch.Generator().manual_seed(sum(shape) + 1)
    made = (scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    grad, o, x = (t.to(dtype).to(device) for t in made)
    return grad, o, x


def special(dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Every pair of special values."""
    values = torch.tensor(SPECIAL, dtype=torch.float64)
    o, x = torch.meshgrid(values, values, indexing="ij")
    return o.flatten().to(dtype).to(device), x.flatten().to(dtype).to(device)


def gradients(grad: Tensor, o: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The reference's gradients, by autograd."""
    o, x = o.detach().requires_grad_(), x.detach().requires_grad_()
    grad_o, grad_x = torch.autograd.grad(reference.gate(o, x), (o, x), grad)
    return grad_o, grad_x


def check_values(gate: Gate, o: Tensor, x: Tensor) -> None:
    """Check the tolerance rule and, where o has no gaps, the strides of the forward pass."""
    y = gate(o, x)
    assert (y.device, y.stride()) == (o.device, torch.empty_like(o).stride())
    o, x = o.cpu(), x.cpu()
    assert_accurate(y, lambda dtype: reference.gate(o.to(dtype), x.to(dtype)))


def check_octaves(gate: Gate, dtype: torch.dtype) -> None:
    """Check the rule for one octave of ``o`` at a time, to find any seam between two formulas."""
    for exponent in range(-10, 5):
        o = torch.linspace(1, 2, 257, dtype=torch.float64) * 2.0**exponent
        o = torch.cat((o, -o)).to(dtype)
        check_values(gate, o, torch.zeros_like(o))


def check_gradients(gate_backward: GateBackward, grad: Tensor, o: Tensor, x: Tensor) -> None:
    """Check that the backward pass obeys the tolerance rule."""
    actual = gate_backward(grad, o, x)
    for t in actual:
        assert (t.device, t.stride()) == (o.device, torch.empty_like(o).stride())
    inputs = grad.cpu(), o.cpu(), x.cpu()
    assert_accurate(actual, lambda dtype: gradients(*(t.to(dtype) for t in inputs)))
