"""The tail's kernels on a GPU.  Needs an NVIDIA GPU."""

import pytest
import torch

from espan_kernels import backends, tail
from tests.kernels.tail_cases import check
from tests.kernels.test_tail import example

CUDA = backends.available()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CUDA.available, reason=CUDA.reason)]

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 16, 28, 32, 48, 52, 64])
def test_values(channels: int, scale: int, dtype: torch.dtype) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (15, 29), (16, 30), (17, 31), (70, 120)]
    for i, size in enumerate(sizes):
        kind, gain = TYPES[(i + scale) % 4], (1.0, 100.0)[i % 3 // 2]
        check(
            tail,
            channels,
            scale,
            2 + i % 2,
            dtype,
            kind,
            (1 + i % 2, *size),
            device="cuda",
            gain=gain,
        )


@pytest.mark.parametrize("hopper", ["1", "0"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("channels", [13, 32, 48, 64])
def test_last_1x1(
    channels: int, scale: int, dtype: torch.dtype, hopper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the first kernels on Hopper."""
    monkeypatch.setenv("ESPAN_HOPPER", hopper)
    for i, size in enumerate([(1, 1), (9, 131), (70, 120)]):
        kind, sides = TYPES[(i + scale) % 4], 2 + i % 2
        shape = (1 + i % 2, *size)
        check(tail, channels, scale, sides, dtype, kind, shape, device="cuda", last_kernel=1)


def on_gpu(dtype: torch.dtype = torch.float16) -> list:
    arguments = example(dtype, 3)
    return [t.cuda() if isinstance(t, torch.Tensor) else t for t in arguments]


@pytest.mark.parametrize("image_dtype", TYPES)
def test_current_stream_and_graph(image_dtype: torch.dtype) -> None:
    arguments = on_gpu()
    arguments[7] = image_dtype
    first, others, flag = arguments[0], arguments[1:], arguments[-1]
    expected = tail(first * 2, *others)
    expected_flag = flag.item()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        image = tail(first * 2, *others)
    stream.synchronize()
    assert torch.equal(image, expected)
    graph, static = torch.cuda.CUDAGraph(), first.clone()
    with torch.cuda.graph(graph):
        captured = tail(static, *others)
    static.copy_(first * 2)
    flag.zero_()
    graph.replay()
    assert torch.equal(captured, expected)
    assert flag.item() == expected_flag


def test_bad_inputs() -> None:
    arguments = on_gpu()
    with pytest.raises(RuntimeError, match="espan::tail: head is on cpu; it must be on"):
        tail(arguments[0].cpu(), *arguments[1:])
    with pytest.raises(RuntimeError, match="espan::tail: packed is on cpu; it must be on"):
        tail(*arguments[:4], arguments[4].cpu(), *arguments[5:])
    with pytest.raises(RuntimeError, match="espan::tail: last has dtype float32; on CUDA"):
        tail(*on_gpu(torch.float32))
    arguments[7] = torch.float64
    with pytest.raises(RuntimeError, match="espan::tail: dtype is float64; it must be uint8"):
        tail(*arguments)
