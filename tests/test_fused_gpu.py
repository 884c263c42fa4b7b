"""Whole networks on a GPU: every backend against the plain network, graphs, uint8, Set14."""

import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

import espan
import espan.fused
from espan.engines import Blocks
from espan.engines.graphs import Graphed
from espan.fused import FusedNetwork
from espan.models import (
    ESPAN,
    SPAN,
    SPANF,
    SPANF3_B5F48,
    SPANF3_B8F64,
    SPANPLUS,
    SPANV2,
    Architecture,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU"),
]
MEMBERS = {
    "espan": ESPAN,
    "span": SPAN.replace(normalization=None),
    "c48x2": Architecture(48, (3, 2), scale=2, concat_last="activation"),
    "spanv2": SPANV2,
    "spanf": SPANF.replace(scale=3),
    "spanf3_b8f64": SPANF3_B8F64.replace(convs=(3, 3, 3)),
    "spanf3_b5f48": SPANF3_B5F48,
    "spanf3x1": SPANF3_B5F48.replace(channels=32, convs=(3, 3), scale=1, unshuffle=4),
    "spanplus": SPANPLUS,
}


def decibels(result: torch.Tensor, exact: torch.Tensor) -> float:
    error = (result.double() - exact).square().mean()
    return float(10 * torch.log10(exact.abs().max() ** 2 / error))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", ["auto", "triton", "reference"])
@pytest.mark.parametrize("member", MEMBERS)
def test_equals_the_plain_network(member, backend, dtype, graph, make_network):
    fused = FusedNetwork(
        make_network(MEMBERS[member]), device="cuda", dtype=dtype, backend=backend, graph=graph
    )
    # 8 and 11 bits per value, over about twenty layers.
    wanted = {torch.float32: 90, torch.float16: 45, torch.bfloat16: 27}[dtype]
    u = MEMBERS[member].unshuffle
    for size in [(u, u), (37, 50), (37, 50), (64, 80)]:
        x = torch.rand(1, 3, *size)
        exact = make_network(MEMBERS[member]).double()(x.double())
        assert decibels(fused(x.cuda()).cpu(), exact) > wanted


@pytest.mark.parametrize("graph", [False, True])
def test_the_flag_is_set_without_waiting(graph, make_network):
    network = make_network(ESPAN)
    network.tail.upsample.weight.mul_(0.1)
    network.tail.upsample.bias.zero_()
    fused = FusedNetwork(network, device="cuda", graph=graph)
    image = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8, device="cuda")
    fused(image)
    assert fused.check()
    network.tail.upsample.bias.fill_(5)
    fused = FusedNetwork(network, device="cuda", graph=graph)
    fused(image)
    assert not fused.check()
    assert fused.check()


@pytest.mark.parametrize("graph", [False, True])
def test_fp32_is_not_tf32(graph, make_network):
    assert torch.backends.cudnn.allow_tf32  # PyTorch's default
    fused = FusedNetwork(make_network(ESPAN), device="cuda", dtype=torch.float32, graph=graph)
    x = torch.rand(1, 3, 40, 50)
    exact = make_network(ESPAN).double()(x.double())
    assert decibels(fused(x.cuda()).cpu(), exact) > 100  # TF32 has 10 bits, about 60 dB
    assert torch.backends.cudnn.allow_tf32


def test_streams_take_turns_in_a_graph(make_network):
    """Each stream launches the graph without waiting for the previous stream."""
    fused = FusedNetwork(make_network(ESPAN), device="cuda", graph=True)
    images = [torch.rand(1, 3, 200, 300, device="cuda") for _ in range(4)]
    expected = [fused(x) for x in images]
    streams = [torch.cuda.Stream() for _ in images]
    torch.cuda.synchronize()
    for _ in range(10):
        results = []
        for x, stream in zip(images, streams, strict=True):
            with torch.cuda.stream(stream):
                results.append(fused(x))
        torch.cuda.synchronize()
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_graphs_on_two_gpus(make_network):
    """PyTorch's own stream for captures is on the GPU of the first one."""
    network, images = make_network(ESPAN), torch.rand(2, 1, 3, 6, 7)
    for device in ("cuda:0", "cuda:1"):
        graphed, eager = (
            FusedNetwork(network, device=device, backend="reference", graph=graph)
            for graph in (True, False)
        )
        for image in images.to(device):
            assert torch.equal(graphed(image), eager(image))


def test_captures_of_two_threads_take_turns():
    inside, proceed = threading.Event(), threading.Event()

    class Slow(torch.nn.Module):
        def forward(self, x, flag):
            if torch.cuda.is_current_stream_capturing():
                inside.set()
                proceed.wait(60)
            return 2 * x

    class Quick(torch.nn.Module):
        def forward(self, x, flag):
            return 3 * x

    x = torch.rand(1, 3, 4, 4, device="cuda")
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    results = {}

    def run(factor, engine):
        results[factor] = engine(x, flag).cpu()

    threads = [
        threading.Thread(target=run, args=(factor, Graphed(engine)))
        for factor, engine in ((2, Slow()), (3, Quick()))
    ]
    threads[0].start()
    inside.wait(60)
    threads[1].start()
    time.sleep(0.2)
    proceed.set()
    for thread in threads:
        thread.join()
    for factor in (2, 3):
        assert torch.equal(results[factor], factor * x.cpu())


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_graph_works_in_and_out_of_inference_mode(first, dtype, make_network):
    with torch.inference_mode(first):
        fused = FusedNetwork(make_network(ESPAN), device="cuda", dtype=dtype, graph=True)
    x = torch.rand(1, 3, 40, 50, device="cuda")
    for mode in (first, not first, first):
        with torch.inference_mode(mode):
            fused(x)
            fused.check()


@pytest.mark.parametrize("weights", ["espan_x4_official", "span_c28_x4_official"])
def test_set14_in_fp16_is_within_5_mdb(weights, testdata):
    path = testdata / "weights" / f"{weights}.pth"
    plain = espan.load(path).double().cuda()
    fused = espan.fused.load(path, "cuda", torch.float16)
    assert fused.backend != "cuda" or isinstance(fused.engine, Blocks)
    differences = []
    for file in sorted((testdata / "testsets" / "Set14" / "LRx4").glob("*.png")):
        lr = np.array(Image.open(file).convert("RGB"))
        hr = np.array(Image.open(file.parents[1] / "HR" / file.name).convert("RGB")).astype(float)
        x = torch.from_numpy(lr).permute(2, 0, 1)[None].cuda()
        exact = (plain(x.double() / 255).clamp(0, 1) * 255).round()
        errors = []
        for image in (exact, fused(x)):
            pixels = image[0].permute(1, 2, 0).cpu().numpy().astype(float)
            size = pixels.shape
            errors.append(np.mean((pixels - hr[: size[0], : size[1]])[4:-4, 4:-4] ** 2))
        differences.append(10 * np.log10(errors[1] / errors[0]))
    assert abs(np.mean(differences)) < 0.005


@pytest.mark.parametrize("graph", [False, True])
def test_equal_images_of_a_list_share_a_call(graph, monkeypatch):
    upscaler = espan.Upscaler(device="cuda", graph=graph)  # trained: its output is plausible
    coarse = torch.rand(5, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (37, 50), mode="bicubic").clamp(0, 1)
    images = list((255 * images).round().to(torch.uint8))
    expected = [upscaler(image) for image in images]
    sizes = []
    call = FusedNetwork.forward
    monkeypatch.setattr(
        FusedNetwork, "forward", lambda self, x: (sizes.append(len(x)), call(self, x))[1]
    )
    for result, wanted in zip(upscaler(images), expected, strict=True):
        # The order of sums in the first convolution depends on how images are cut into segments.
        difference = (result.int() - wanted.int()).abs()
        assert difference.max() <= 1
        assert (difference > 0).float().mean() < 0.01
    assert sizes == [5]
