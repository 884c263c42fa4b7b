"""The compiled and the Triton kernels of the gate.  Needs an NVIDIA GPU."""

from types import SimpleNamespace

import pytest
import torch

from espan_kernels import backends, gate
from tests.kernels import gate_cases as cases

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU is visible to torch"),
]

COMPILED, FLOATS = torch.ops.espan, (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(params=["cuda", "triton"])
def ops(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The ops of one backend."""
    backend = backends.available()[request.param]
    if not backend.available:
        pytest.skip(backend.reason)
    if backend.name == "cuda":
        return COMPILED
    import espan_kernels.triton.gate  # noqa: F401

    return torch.ops.espan_triton


@pytest.mark.parametrize("dtype", FLOATS)
def test_values(ops: SimpleNamespace, dtype: torch.dtype) -> None:
    # A vector has 4 or 8 elements; a wave of thread blocks on an H100, about 2 million.
    for n in (*cases.SIZES, 5_000_001):
        grad, o, x = cases.inputs(n, dtype=dtype, device="cuda")
        cases.check_values(ops.gate, o, x)
        cases.check_gradients(ops.gate_backward, grad, o, x)
    for scale in cases.decades(dtype):
        grad, o, x = cases.inputs(1000, dtype=dtype, scale=scale, device="cuda")
        cases.check_values(ops.gate, o, x)
        cases.check_gradients(ops.gate_backward, grad, o, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values(ops: SimpleNamespace, dtype: torch.dtype) -> None:
    o, x = cases.special(dtype, device="cuda")
    exact = cases.reference.gate(o.double(), x.double())
    y = ops.gate(o, x)
    assert torch.equal(y.isnan(), exact.isnan())
    assert torch.equal(y.isinf(), exact.to(dtype).isinf())


@pytest.mark.parametrize("offset", [1, 2, 4, 8])
def test_misaligned_and_strided(ops: SimpleNamespace, offset: int) -> None:
    grad, o, x = cases.inputs(10_000, dtype=torch.float16, device="cuda")
    cases.check_values(ops.gate, o[offset:], x[:-offset])
    cases.check_values(ops.gate, o[::offset], x[::offset])
    cases.check_gradients(ops.gate_backward, grad[offset:], o[:-offset], x[offset:])


def test_gradcheck() -> None:
    o, x = (torch.randn(3, 5).double().cuda().requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(gate, (o, x))


def test_compile(ops: SimpleNamespace) -> None:
    compiled = torch.compile(lambda o, x: ops.gate(o * 2, x) + 1, fullgraph=True)
    _, o, x = cases.inputs(1000, device="cuda")
    o.requires_grad_()
    torch.testing.assert_close(compiled(o, x), ops.gate(o * 2, x) + 1)
    compiled(o, x).sum().backward()


def test_current_stream_and_graph(ops: SimpleNamespace) -> None:
    _, o, x = cases.inputs(1_000_000, device="cuda")
    expected = ops.gate(o, x)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        doubled = o * 2  # still pending on this stream: the gate must wait for it
        y = ops.gate(doubled, x)
    stream.synchronize()
    torch.testing.assert_close(y, ops.gate(o * 2, x))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.gate(o, x)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device(ops: SimpleNamespace) -> None:
    _, o, x = cases.inputs(1000, device="cuda:1")
    cases.check_values(ops.gate, o, x)
    assert torch.cuda.current_device() == 0
    with pytest.raises(RuntimeError, match="x is on cuda:0; it must be on the device of o, cuda:1"):
        ops.gate(o, x.to("cuda:0"))


def test_mixed_devices() -> None:
    with pytest.raises(RuntimeError, match="x is on cpu; it must be on the device of o, cuda:0"):
        COMPILED.gate(torch.zeros(2, device="cuda"), torch.zeros(2))
