"""The gate's Triton kernels on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.  The interpreter has no bfloat16.
"""

import pytest
import torch

import espan_kernels.triton.gate  # noqa: F401  (defines torch.ops.espan_triton)
from tests.kernels import gate_cases as cases

ops = torch.ops.espan_triton


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
def test_values(dtype: torch.dtype) -> None:
    for n in (0, 1, 1023, 1024, 1025, 5000):  # below, at and above a block
        grad, o, x = cases.inputs(n, dtype=dtype)
        cases.check_values(ops.gate, o, x)
        cases.check_gradients(ops.gate_backward, grad, o, x)


def test_small_and_large_values() -> None:
    cases.check_octaves(ops.gate, torch.float32)
    for scale in cases.decades(torch.float32):
        grad, o, x = cases.inputs(1000, scale=scale)
        cases.check_values(ops.gate, o, x)
        cases.check_values(ops.gate, o, torch.zeros_like(x))
        cases.check_gradients(ops.gate_backward, grad, o, x)


def test_special_values() -> None:
    o, x = cases.special()
    exact = cases.reference.gate(o.double(), x.double())
    y = ops.gate(o, x)
    assert torch.equal(y.isnan(), exact.isnan())
    assert torch.equal(y.isinf(), exact.float().isinf())


def test_layouts() -> None:
    grad, o, x = cases.inputs(2, 8, 6, 10)
    o_last = o.to(memory_format=torch.channels_last)
    for a, b in ((o_last, x), (o_last, x.to(memory_format=torch.channels_last)), (o, x)):
        for crop in (slice(None), slice(1, 5)):
            cases.check_values(ops.gate, a[:, :, crop], b[:, :, crop])
            cases.check_gradients(ops.gate_backward, grad[:, :, crop], a[:, :, crop], b[:, :, crop])


def test_memory_outside_is_not_written() -> None:
    """The kernel itself, writing into the middle of a buffer of NaN."""
    from espan_kernels.triton.gate import BLOCK, gate_kernel

    _, o, x = cases.inputs(1500)
    buffer = torch.full((4000,), float("nan"))
    gate_kernel[(2,)](o, x, buffer[1000:], 1500, block=BLOCK)
    assert buffer.isnan().sum() == 2500
    torch.testing.assert_close(buffer[1000:2500], cases.reference.gate(o, x))


def test_gradient() -> None:
    grad, o, x = cases.inputs(10)
    o.requires_grad_()
    x.requires_grad_()
    y = ops.gate(o, x)
    found = torch.autograd.grad(y, (o, x), grad, create_graph=True)
    torch.testing.assert_close(found, cases.gradients(grad, o, x))
    with pytest.raises(RuntimeError, match="no second derivative"):
        found[0].sum().backward()


def test_bad_inputs() -> None:
    with pytest.raises(RuntimeError, match=r"espan_triton::gate: x has shape \[3\]"):
        ops.gate(torch.zeros(2), torch.zeros(3))
    with pytest.raises(RuntimeError, match=r"espan_triton::gate: o has dtype int64"):
        ops.gate(torch.zeros(2).long(), torch.zeros(2).long())
    with pytest.raises(RuntimeError, match=r"espan_triton::gate_backward: grad has dtype float16"):
        ops.gate_backward(torch.zeros(2).half(), torch.zeros(2), torch.zeros(2))


def test_float64_runs_the_reference() -> None:
    grad, o, x = cases.inputs(100, dtype=torch.float64)
    cases.check_values(ops.gate, o, x)
    cases.check_gradients(ops.gate_backward, grad, o, x)
