"""All engines: equal results, uint8 in and out, and the flag."""

import contextlib
from types import SimpleNamespace

import pytest
import torch

from espan.engines import Blocks, Composed, Streamed, graphs
from espan.folding import fold
from espan.models import ESPAN, SPAN, SPANV2, Architecture
from espan_kernels import backends, reference
from espan_kernels.packing import cuda_fragments
from tests.tolerance import FOLDED, WINOGRAD, assert_accurate, streamed

MEMBERS = {
    "espan": ESPAN,
    "span": SPAN,
    "c26x3": SPAN.replace(channels=26, convs=(3, 2), scale=3, head_kernel=5),
    "c16x2": Architecture(16, (2,), scale=2),
}


def engine(name, network):
    """An engine by name, on the CPU."""
    folded = fold(network)
    cpu = torch.device("cpu")
    if name == "blocks":
        return Blocks(folded, device=cpu, dtype=torch.float32)
    if name == "composed":
        return Composed(folded, device=cpu, dtype=torch.float32, gate=reference.gate)
    return Streamed(folded)


def new_flag():
    return torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("name", ["blocks", "composed", "streamed"])
def test_the_same_result(name, member, make_network):
    run = engine(name, make_network(MEMBERS[member]))
    for size in [(1, 1), (13, 9)]:
        x = torch.rand(2, 3, *size)
        exact = make_network(MEMBERS[member]).double()(x.double())
        flag = new_flag()
        allowed = {"factor": float(FOLDED if name == "composed" else WINOGRAD)}
        if name == "streamed":
            allowed = streamed(backends.cpu_path())
        plain = {d: make_network(MEMBERS[member]).to(d) for d in (torch.float64, torch.float32)}
        assert_accurate(run(x, flag), lambda d, n=plain, x=x: n[d](x.to(d)), **allowed)
        assert flag.item() == (not -1 <= exact.min() <= exact.max() <= 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("name", ["blocks", "composed", "streamed"])
def test_images_of_another_dtype(name, dtype, make_network):
    run = engine(name, make_network(MEMBERS["c16x2"]))
    x = torch.rand(1, 3, 5, 7).to(dtype)
    torch.testing.assert_close(run(x, new_flag()).float(), run(x.float(), new_flag()))


@pytest.mark.parametrize("architecture", [ESPAN, SPANV2], ids=["espan", "spanv2"])
@pytest.mark.parametrize("name", ["blocks", "composed", "streamed"])
def test_the_default_device_does_not_matter(name, architecture, make_network):
    """Weights are packed on the CPU; "meta" stands for a GPU."""
    network = make_network(architecture.replace(channels=16))
    x = torch.rand(1, 3, 5, 7)
    expected = engine(name, network)(x, new_flag())
    cuda_fragments.inverse.cache_clear()
    flag = new_flag()
    with torch.device("meta"):
        found = engine(name, network)(x, flag)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["blocks", "composed", "streamed"])
def test_bytes_are_clamped_and_rounded(name, make_network):
    run = engine(name, make_network(SPAN.replace(channels=16)))
    image = torch.randint(0, 256, (2, 3, 9, 11), dtype=torch.uint8)
    for x in (image, image.contiguous(memory_format=torch.channels_last)):
        result = run(x, new_flag())
        assert result.dtype == torch.uint8
        exact = 255 * run(x.float() / 255, new_flag()).clamp(0, 1)
        assert ((result - exact).abs() <= 0.5001).all()


@pytest.mark.parametrize("value", [2.5, -1.5, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", ["blocks", "composed", "streamed"])
def test_flag(name, dtype, value, make_network):
    network = make_network(Architecture(16, (2,), scale=2))
    for parameter in network.parameters():
        parameter.zero_()
    network.tail.upsample.bias.fill_(1.9)
    image = torch.ones(1, 3, 5, 6).to(dtype)
    flag = new_flag()
    engine(name, network)(image, flag)
    assert flag.item() == 0
    network.tail.upsample.bias[7] = value
    engine(name, network)(image, flag)
    assert flag.item() == 1
    network.tail.upsample.bias[7] = 0
    engine(name, network)(image, flag)
    assert flag.item() == 1  # it stays set


def test_blocks_supports_what_the_kernels_support():
    for dtype, architecture, can in [
        (torch.float16, ESPAN, True),
        (torch.bfloat16, SPAN.replace(channels=64, scale=2), True),
        (torch.float32, ESPAN, False),
        (torch.float16, ESPAN.replace(channels=65), False),
        (torch.float16, ESPAN.replace(scale=5), False),
        (torch.float16, ESPAN.replace(head_kernel=13), False),
    ]:
        assert Blocks.can_run(architecture, dtype) is can


class Recorder:
    """Replaces CUDA and records all calls in order."""

    def __init__(self):
        self.calls = []

    def __call__(self, name):
        return lambda *arguments: self.calls.append(name)

    def event(self):
        return SimpleNamespace(
            wait=self("wait"), record=self("record"), synchronize=self("synchronize")
        )


@pytest.fixture
def cuda(monkeypatch):
    recorder = Recorder()
    context = contextlib.nullcontext
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *arguments, **options: context())
    streams = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: streams)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams)
    monkeypatch.setattr(torch.cuda, "Event", recorder.event)
    replayed = SimpleNamespace(replay=recorder("replay"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: replayed)
    return recorder


def test_graphs_order_the_streams_that_use_them(cuda, monkeypatch):
    """A stream waits for the previous one, and a dropped graph for the last stream that used it."""
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    run = graphs.Graphed(lambda image, flag: image + 1)
    use = ["wait", "replay", "record"]
    for width, expected in [
        (1, use[1:]),
        (1, use),
        (2, use),
        (3, [use[0], "synchronize", *use[1:]]),
    ]:
        cuda.calls.clear()
        run(torch.zeros(1, 3, 1, width), new_flag())
        assert cuda.calls == expected
    assert [key[0][3] for key in run._graphs] == [2, 3]
