"""The fused network equals the plain one."""

import copy
import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import espan.fused
from espan import checkpoints
from espan.branches import GRepConv
from espan.engines import Composed, Streamed
from espan.errors import EspanError
from espan.folding import fold
from espan.fused import FusedNetwork
from espan.models import ESPAN, SPAN, Architecture, Network
from espan_kernels import _library, reference
from tests.tolerance import FOLDED, WINOGRAD, assert_accurate

MEMBERS = {
    "espan": ESPAN,
    "span": SPAN,
    "c16d3x2": Architecture(16, (3, 3, 2), scale=2),
    "c26d2k5x3": SPAN.replace(channels=26, convs=(3, 3), scale=3, head_kernel=5),
    "one two-convolution block": Architecture(12, (2,), concat_last="activation"),
}


def on_cpu(network: Network, **options) -> FusedNetwork:
    return FusedNetwork(network, device="cpu", **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", MEMBERS)
def test_equals_the_plain_network(name, backend, dtype, make_network):
    network = make_network(MEMBERS[name])
    fused = on_cpu(network, dtype=dtype, backend=backend)
    assert fused.backend == backend
    for size in [(1, 1), (1, 7), (9, 5), (16, 24)]:
        x = torch.rand(2, 3, *size)
        allowed = {"factor": float(FOLDED)}
        if isinstance(fused.engine, Streamed):
            allowed = {"factor": float(WINOGRAD)}  # with an explicit float32, on every CPU path
        plain = {d: make_network(MEMBERS[name]).to(d) for d in (torch.float64, dtype)}
        assert_accurate(fused(x), lambda d, n=plain, x=x: n[d](x.to(d)), **allowed)


@pytest.mark.parametrize("name", MEMBERS)
def test_folding_is_exact_at_the_border(name, make_network):
    """In fp64, the folded network equals the plain one everywhere, including the corners."""
    network = make_network(MEMBERS[name]).double()
    cpu = torch.device("cpu")
    folded = Composed(fold(network), device=cpu, dtype=torch.float64, gate=reference.gate)
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    expected = network(x)
    error = (folded(x, torch.zeros(1, dtype=torch.int32)) - expected).abs().max()
    # The mean is kept in fp32, which causes differences of 1e-7.
    assert error < 1e-6 * expected.abs().max()


def test_load_takes_bundled_weights_and_files(tmp_path, make_network):
    assert espan.fused.load(device="cpu").scale == 4
    checkpoints.save(make_network(SPAN), tmp_path / "w.safetensors", record={})
    fused = espan.fused.load(tmp_path / "w.safetensors", "cpu", torch.bfloat16, "reference")
    assert fused.dtype == torch.bfloat16
    assert fused(torch.rand(1, 3, 4, 4)).dtype == torch.bfloat16


def test_the_input_is_not_modified(make_network):
    x = torch.rand(1, 3, 6, 5)
    kept = x.clone()
    on_cpu(make_network(SPAN))(x)
    on_cpu(make_network(ESPAN))(x)
    assert torch.equal(x, kept)


def test_any_strides(make_network):
    fused = on_cpu(make_network(ESPAN))
    x = torch.rand(2, 6, 8, 20)[:, ::2, :, 3:17:2]
    torch.testing.assert_close(fused(x), fused(x.contiguous()))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compile(backend, make_network):
    fused = on_cpu(make_network(Architecture(8, (3, 2), head_kernel=5)), backend=backend)
    compiled = torch.compile(fused, fullgraph=True)
    for size in [(8, 8), (7, 9)]:
        x = torch.rand(1, 3, *size)
        torch.testing.assert_close(compiled(x), fused(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_does_not_change_the_dtype(compiled, make_network):
    fused = on_cpu(make_network(Architecture(8, (3, 2), head_kernel=5)), backend="reference")
    x = torch.rand(1, 3, 7, 9)
    expected = fused(x)
    run = torch.compile(fused, backend="eager") if compiled else fused
    with torch.autocast("cpu", torch.bfloat16):
        found = run(x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_later_changes_of_the_network_have_no_effect(backend, make_network):
    network = make_network(SPAN)
    fused = on_cpu(network, backend=backend)
    x = torch.rand(1, 3, 6, 7)
    expected = fused(x)
    for parameter in network.parameters():
        parameter.mul_(1.1)
    for same in (fused, copy.deepcopy(fused), FusedNetwork(fused.plain, **fused.options)):
        assert torch.equal(same(x), expected)


def test_export(make_network):
    fused = on_cpu(make_network(SPAN.replace(channels=8, convs=(3, 3))))
    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    program = torch.export.export(
        fused, (torch.rand(1, 3, 8, 9),), dynamic_shapes=({2: height, 3: width},)
    )
    assert any("espan.network" in str(node.target) for node in program.graph.nodes)
    x = torch.rand(1, 3, 5, 12)
    torch.testing.assert_close(program.module()(x), fused(x))


def test_bytes_and_the_range(make_network):
    network = make_network(ESPAN)
    for parameter in network.tail.upsample.parameters():
        parameter.mul_(0.1)  # well within the range
    fused = on_cpu(network)
    image = torch.randint(0, 256, (1, 3, 7, 8), dtype=torch.uint8)
    result = fused(image)
    assert result.dtype == torch.uint8
    exact = 255 * fused(image.float() / 255).clamp(0, 1)
    assert ((result - exact).abs() <= 0.5001).all()
    assert fused.check()
    fused(torch.full((1, 3, 4, 4), 1e4))
    assert not fused.check()
    assert fused.check()  # reported once


def test_threads(make_network):
    fused = on_cpu(make_network(ESPAN))
    inputs = [torch.rand(1, 3, 8 + i, 20 - i) for i in range(6)]
    expected = [fused(x) for x in inputs]
    results: list = [None] * len(inputs)

    def work(i):
        for _ in range(5):
            results[i] = fused(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(result, wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"dtype": torch.int8}, "dtype must be one of"),
        ({"backend": "tpu"}, "tpu"),
        ({"device": "cpu", "graph": True}, "needs an NVIDIA GPU"),
        pytest.param(
            {"device": "cuda"},
            "torch sees no NVIDIA GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        pytest.param(
            {"backend": "cuda"},
            "cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_options(options, message, make_network):
    with pytest.raises(EspanError, match=message):
        FusedNetwork(make_network(ESPAN), **options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.rand(3, 8, 8), r"\(N, 3, H, W\), got \(3, 8, 8\)"),
        (torch.rand(1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
        (torch.rand(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), "0-1 or uint8, got torch.int32"),
        (torch.rand(1, 3, 8, 8, requires_grad=True), "for inference"),
    ],
)
def test_bad_input(x, message, make_network):
    with pytest.raises(EspanError, match=message):
        on_cpu(make_network(ESPAN))(x)


def test_training_form_is_rejected():
    with pytest.raises(EspanError, match="collapse"):
        on_cpu(Network(ESPAN, conv=GRepConv))


def test_explicit_float32_does_not_use_the_matrix_unit(make_network):
    network = make_network(Architecture(8, (2,), scale=2))
    if _library.compiled is None:
        pytest.skip(_library.why_not_compiled)
    assert on_cpu(network, dtype=torch.float32).engine.packed.dtype == torch.float32


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_never_used(allowed, make_network, monkeypatch):
    """It is disabled in each convolution; the global setting, which is the user's, is unchanged."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    fused = on_cpu(make_network(SPAN), dtype=torch.float32, backend="reference")
    seen = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            if "convolution" in op.name():
                names = [argument.name for argument in op._schema.arguments]
                allowed_here = dict(zip(names, args, strict=False), **(kwargs or {}))["allow_tf32"]
                seen.append((allowed_here, torch.backends.cudnn.allow_tf32))
            return op(*args, **(kwargs or {}))

    with Watched():
        fused(torch.rand(1, 3, 8, 8))
    assert seen == [(False, allowed)] * (1 + sum(SPAN.convs) + 3)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("made_in", [False, True])
@pytest.mark.parametrize("run_in", [False, True])
def test_creating_and_running_in_different_inference_modes(make_network, backend, made_in, run_in):
    network = make_network(Architecture(8, (2,), scale=2))
    x = torch.rand(1, 3, 4, 5)
    expected = on_cpu(network, backend=backend)(x)
    with torch.inference_mode(made_in):
        fused = on_cpu(network, backend=backend)
    with torch.inference_mode(run_in):
        assert torch.equal(fused(x), expected)
        assert fused.check()
    assert torch.equal(fused(x), expected)
    assert fused.check()


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f.half(),
        lambda f: f.float(),
        lambda f: f.double(),
        lambda f: f.bfloat16(),
        lambda f: f.to(torch.float16),
        lambda f: f.to("meta"),
        lambda f: f.cpu(),
    ],
)
def test_casting_and_moving_are_rejected(make_network, change):
    fused = on_cpu(make_network(Architecture(8, (2,), scale=2)))
    with pytest.raises(EspanError, match=r"make another one: espan\.fused\.load"):
        change(fused)
    fused(torch.rand(1, 3, 4, 5))  # still usable
