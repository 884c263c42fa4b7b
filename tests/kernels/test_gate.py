"""The gate on every CPU path, and its behaviour as a PyTorch op."""

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from espan_kernels import _library, gate, reference
from tests.kernels import gate_cases as cases

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ops = torch.ops.espan


@pytest.fixture(params=["portable", "avx2", "avx512"])
def cpu_path(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every CPU path that this machine can run."""
    if _library.compiled is None:
        pytest.skip(_library.why_not_compiled)
    try:
        _library.compiled.select_cpu_path(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _library.compiled.select_cpu_path("auto")


@pytest.mark.parametrize("dtype", FLOATS)
def test_values(cpu_path: str, dtype: torch.dtype) -> None:
    for n in cases.SIZES:
        grad, o, x = cases.inputs(n, dtype=dtype)
        cases.check_values(ops.gate, o, x)
        cases.check_gradients(ops.gate_backward, grad, o, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_small_and_large_values(cpu_path: str, dtype: torch.dtype) -> None:
    cases.check_octaves(ops.gate, dtype)
    for scale in cases.decades(dtype):
        grad, o, x = cases.inputs(1000, dtype=dtype, scale=scale)
        cases.check_values(ops.gate, o, x)
        cases.check_values(ops.gate, o, torch.zeros_like(x))
        cases.check_gradients(ops.gate_backward, grad, o, x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values(cpu_path: str, dtype: torch.dtype) -> None:
    o, x = cases.special(dtype)
    exact = reference.gate(o.double(), x.double())
    y = ops.gate(o, x)
    assert torch.equal(y.isnan(), exact.isnan())
    assert torch.equal(y.isinf(), exact.to(dtype).isinf())
    grad_o, grad_x = ops.gate_backward(torch.ones_like(o), o, x)
    assert torch.equal(grad_x.isnan(), o.isnan())
    assert grad_o[o.isnan() | x.isnan()].isnan().all()
    moderate = exact.abs() < 100  # in fp16, the squares of 1e4 would hide all other errors
    cases.check_values(ops.gate, o[moderate], x[moderate])
    cases.check_gradients(ops.gate_backward, torch.ones_like(o)[moderate], o[moderate], x[moderate])


def test_bfloat16_rounds_as_torch_does(cpu_path: str) -> None:
    """Far from zero, the gate is (o + x) / 2 to the last bit, so only rounding is tested."""
    x = torch.arange(0x4000, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    o = torch.full_like(x, 64.0)
    assert torch.equal(ops.gate(o, x), (0.5 * (o.float() + x.float())).bfloat16())


def test_matches_the_plain_formula() -> None:
    """reference.gate is the paper's (o + x) (sigmoid(o) - 1/2)."""
    _, o, x = cases.inputs(1000, dtype=torch.float64)
    torch.testing.assert_close(reference.gate(o, x), (o + x) * (torch.sigmoid(o) - 0.5))


def test_reference_gradient_equals_autograd() -> None:
    grad, o, x = cases.inputs(1000, dtype=torch.float64)
    torch.testing.assert_close(reference.gate_backward(grad, o, x), cases.gradients(grad, o, x))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (1, 1, 1, 1), (2, 3, 5, 7)])
def test_shapes(shape: tuple[int, ...]) -> None:
    grad, o, x = cases.inputs(*shape)
    cases.check_values(gate, o, x)
    cases.check_gradients(ops.gate_backward, grad, o, x)


def _views(t: Tensor) -> dict[str, Tensor]:
    """The values of a (2, 8, 6, 10) tensor in many memory layouts, with NaN in every gap."""

    def inside(shape: tuple[int, ...], index: tuple[slice | int, ...]) -> Tensor:
        buffer = torch.full(shape, float("nan"), dtype=t.dtype)
        view = buffer[index]
        view.copy_(t.reshape(view.shape))
        return view.reshape(t.shape) if view.is_contiguous() else view

    every = slice(None)
    return {
        "contiguous": t.clone(),
        "channels_last": t.to(memory_format=torch.channels_last),
        "transposed": t.transpose(0, 3).contiguous().transpose(0, 3),
        "offset": inside((t.numel() + 9,), (slice(3, 3 + t.numel()),)),
        "cropped": inside((2, 8, 9, 13), (every, every, slice(2, 8), slice(1, 11))),
        "stepped": inside((2, 8, 6, 20), (every, every, every, slice(1, None, 2))),
        "channel slice": inside((2, 12, 6, 10), (every, slice(2, 10))),
    }


LAYOUTS = tuple(_views(torch.zeros(2, 8, 6, 10)))


@pytest.mark.parametrize("layout_x", LAYOUTS)
@pytest.mark.parametrize("layout_o", LAYOUTS)
def test_layouts(layout_o: str, layout_x: str) -> None:
    grad, o, x = cases.inputs(2, 8, 6, 10)
    o, x = _views(o)[layout_o], _views(x)[layout_x]
    before = o.clone(), x.clone()
    cases.check_values(gate, o, x)
    cases.check_gradients(ops.gate_backward, grad, o, x)
    cases.check_gradients(ops.gate_backward, _views(grad)[layout_x], o, x)
    assert torch.equal(o, before[0])
    assert torch.equal(x, before[1])


def test_expanded_inputs() -> None:
    grad, o, x = cases.inputs(1, 8, 1, 10)
    grad, o, x = (t.expand(2, 8, 6, 10) for t in (grad, o, x))
    cases.check_values(gate, o, x)
    cases.check_gradients(ops.gate_backward, grad, o, x)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "offset"])
def test_one_dense_layout_is_not_copied(layout: str) -> None:
    grad, o, x = (_views(t)[layout] for t in cases.inputs(2, 8, 6, 10))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ops.gate(o, x)
        ops.gate_backward(grad, o, x)
    names = {event.key for event in profile.key_averages()}
    assert "espan::gate" in names
    assert "aten::copy_" not in names


def test_gradcheck() -> None:
    for o, x in (
        (torch.randn(3, 5).double(), torch.randn(3, 5).double()),
        (torch.randn(2, 3, 4, 5).double().to(memory_format=torch.channels_last),) * 2,
        (torch.randn(6, 8).double()[::2, 1::3], torch.randn(3, 3).double()),
    ):
        o, x = o.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
        assert torch.autograd.gradcheck(gate, (o, x))


def test_forward_mode() -> None:
    grad, o, x = cases.inputs(5)
    _, tangent = torch.func.jvp(gate, (o, x), (grad, torch.zeros_like(x)))
    torch.testing.assert_close(tangent, cases.gradients(grad, o, x)[0])


def test_second_derivative_is_rejected() -> None:
    _, o, x = cases.inputs(5)
    o.requires_grad_()
    (first,) = torch.autograd.grad(gate(o, x).sum(), o, create_graph=True)
    torch.testing.assert_close(first, cases.gradients(torch.ones(5), o, x)[0])
    with pytest.raises(RuntimeError, match="espan::gate has no second derivative"):
        first.sum().backward()


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype: torch.dtype) -> None:
    grad, o, x = cases.inputs(2, 8, 6, 10, dtype=dtype)
    torch.library.opcheck(ops.gate.default, (o.clone().requires_grad_(), x.requires_grad_()))
    for layout in ("channels_last", "cropped"):
        viewed = _views(o)[layout]
        torch.library.opcheck(ops.gate.default, (viewed, x.detach()))
        torch.library.opcheck(ops.gate_backward.default, (grad, viewed, x.detach()))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic: bool) -> None:
    def block(o: Tensor, x: Tensor) -> Tensor:
        return gate(o * 2, x) + 1

    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic)
    for height in (4, 5):
        _, o, x = cases.inputs(1, 3, height, 7)
        pairs = [(o.clone().requires_grad_(), x.clone().requires_grad_()) for _ in range(2)]
        results = [f(*pair) for f, pair in zip((compiled, block), pairs, strict=True)]
        torch.testing.assert_close(*results)
        for result in results:
            result.square().sum().backward()
        torch.testing.assert_close([t.grad for t in pairs[0]], [t.grad for t in pairs[1]])


def test_export() -> None:
    class Block(torch.nn.Module):
        def forward(self, o: Tensor, x: Tensor) -> Tensor:
            return gate(o, x)

    _, o, x = cases.inputs(2, 3, 4, 5)
    program = torch.export.export(Block(), (o, x), dynamic_shapes=({2: torch.export.Dim.AUTO},) * 2)
    assert "torch.ops.espan.gate.default" in str(program.graph_module.code)
    _, o, x = cases.inputs(2, 3, 9, 5)
    torch.testing.assert_close(program.module()(o, x), gate(o, x))


def test_thread_count_does_not_change_the_result() -> None:
    _, o, x = cases.inputs(100_003)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gate(o, x))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_many_python_threads() -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        _, o, x = cases.inputs(30_000 + seed)
        expected = gate(o, x)
        if not all(torch.equal(gate(o, x), expected) for _ in range(20)):
            wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_autocast_takes_the_wider_dtype() -> None:
    _, o, x = cases.inputs(10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = gate(o.bfloat16(), x)
        assert gate(o, x).dtype == torch.float32
    assert torch.equal(y, gate(o.bfloat16().float(), x))
    with pytest.raises(RuntimeError, match="dtype"):
        gate(o.bfloat16(), x)


F, H, META = torch.float32, torch.float16, "meta"


@pytest.mark.parametrize(
    ("o", "x", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 4), r"x has shape \[2, 4\]; .* of o, \[2, 3\]"),
        (torch.zeros(2, 3), torch.zeros(3), r"x has shape \[3\]; .* of o, \[2, 3\]"),
        (torch.zeros(1), torch.zeros(()), r"x has shape \[\]; .* of o, \[1\]"),
        (torch.zeros(2), torch.zeros(2, dtype=H), "x has dtype float16; .* of o, float32"),
        (torch.zeros(2).int(), torch.zeros(2).int(), "o has dtype Int.*; it must be float32"),
        (torch.zeros(2).cfloat(), torch.zeros(2).cfloat(), "o has dtype Complex"),
        (torch.zeros(2), torch.zeros(2, device=META), "x is on meta; .* of o, cpu"),
        (torch.zeros(2, device=META), torch.zeros(2), "x is on cpu; .* of o, meta"),
        (torch.zeros(2, device=META), torch.zeros(3, device=META), r"x has shape \[3\]"),
    ],
)
def test_bad_inputs(o: Tensor, x: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"(?i)^espan::gate: {message}"):
        gate(o, x)
    with pytest.raises(RuntimeError, match=f"(?i)^espan::gate_backward: {message}"):
        ops.gate_backward(o, o, x)


def test_bad_incoming_gradient() -> None:
    _, o, x = cases.inputs(3)
    with pytest.raises(RuntimeError, match=r"^espan::gate_backward: grad has shape \[2\]"):
        ops.gate_backward(torch.zeros(2), o, x)
