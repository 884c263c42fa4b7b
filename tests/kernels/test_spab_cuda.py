"""The block's kernels on a GPU.  Needs an NVIDIA GPU."""

import pytest
import torch
from torch import Tensor

from espan_kernels import backends, pack_spab, spab
from espan_kernels.spab import LEARNED
from tests.kernels.spab_cases import KINDS, Kind, check
from tests.kernels.test_spab import run, run_kind

CUDA = backends.available()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CUDA.available, reason=CUDA.reason)]

FLOATS = (torch.float16, torch.bfloat16)
# With one channel, a value has only 9 weights in each layer.  In one network in a hundred, the
# errors add up to more than the rule allows, in any implementation.
CHANNELS = (5, 16, 26, 28, 32, 36, 48, 52, 64)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_values(channels: int, convs: int, dtype: torch.dtype) -> None:
    for size in ((1, 1), (1, 7), (9, 1), (15, 27), (16, 28), (17, 29), (35, 57), (70, 120)):
        check(run, channels, convs, dtype, (2, *size), device="cuda")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("channels", [16, 26, 32, 41, 48, 52, 64])
@pytest.mark.parametrize("kind", KINDS[1:])
def test_other_activations_and_gates(
    kind: Kind, channels: int, convs: int, dtype: torch.dtype
) -> None:
    for size in ((1, 1), (9, 1), (17, 29), (70, 120)):
        check(run_kind(kind), channels, convs, dtype, (2, *size), device="cuda", kind=kind)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("channels", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_reach_the_output(kind: Kind, channels: int, bad: float) -> None:
    weights, biases = [torch.ones(channels, channels, 3, 3)] * 2, [torch.ones(channels)] * 2
    conv = (weights[0][..., :1, :1], biases[0]) if kind[1] in LEARNED else None
    packed = pack_spab(
        weights, biases, torch.float16, "cuda", activation=kind[0], gate=kind[1], gate_conv=conv
    )
    x = torch.full((1, 9, 9, channels), bad, dtype=torch.float16, device="cuda")
    assert not run(x, packed, channels, 2, kind)[0].isfinite().any()


def example(dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    weights = [torch.randn(28, 28, 3, 3) / 16 for _ in range(3)]
    packed = pack_spab(weights, [torch.randn(28) for _ in range(3)], dtype, "cuda")
    x = torch.randn(1, 200, 300, 32)
    x[..., 28:] = 0
    return x.to("cuda", dtype), packed


def test_is_deterministic_and_one_launch() -> None:
    x, packed = example()
    expected = run(x, packed, 28, 3)
    for _ in range(20):
        for a, b in zip(run(x, packed, 28, 3), expected, strict=True):
            assert torch.equal(a, b)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        spab(x, packed, 28, 3)
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    kernels = [n for n in names if "Memset" not in n]
    assert len(kernels) == 1
    assert "spab" in kernels[0]


def test_current_stream_and_graph() -> None:
    x, packed = example()
    expected = spab(x * 2, packed, 28, 3)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        y = spab(x * 2, packed, 28, 3)[0]
    stream.synchronize()
    assert torch.equal(y, expected)
    graph, static = torch.cuda.CUDAGraph(), x.clone()
    with torch.cuda.graph(graph):
        captured = spab(static, packed, 28, 3)[0]
    static.copy_(x * 2)
    graph.replay()
    assert torch.equal(captured, expected)


def test_compile() -> None:
    x, packed = example()
    compiled = torch.compile(lambda x: run(x * 2, packed, 28, 3)[0] + 1, fullgraph=True)
    torch.testing.assert_close(compiled(x), run(x * 2, packed, 28, 3)[0] + 1)


def test_bad_inputs() -> None:
    x, packed = example()
    with pytest.raises(RuntimeError, match="espan::spab: x has dtype float32; on CUDA"):
        spab(x.float(), packed, 28, 3)
    with pytest.raises(RuntimeError, match="espan::spab: packed is on cpu; it must be on"):
        spab(x, packed.cpu(), 28, 3)
    shifted = torch.zeros(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view(x.shape)
    with pytest.raises(RuntimeError, match="x must be aligned to 16 bytes"):
        spab(shifted, packed, 28, 3)
    with pytest.raises(RuntimeError, match="x must be contiguous"):
        spab(x[:, :, ::2], packed, 28, 3)
    with pytest.raises(RuntimeError, match="packed has dtype float16; it must be bfloat16"):
        spab(x.bfloat16(), packed, 28, 3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device() -> None:
    check(run, 28, 3, torch.float16, (1, 30, 50), device="cuda:1")
    assert torch.cuda.current_device() == 0
