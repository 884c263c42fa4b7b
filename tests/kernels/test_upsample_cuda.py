"""The kernels of upsample on a GPU.  Needs an NVIDIA GPU."""

import pytest
import torch

from espan_kernels import backends, upsample
from tests.kernels.test_upsample import example
from tests.kernels.upsample_cases import check

CUDA = backends.available()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CUDA.available, reason=CUDA.reason)]

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("hopper", ["1", "0"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 16, 28, 32, 48, 64])
def test_values(
    channels: int, scale: int, dtype: torch.dtype, hopper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the first kernels on Hopper."""
    monkeypatch.setenv("ESPAN_HOPPER", hopper)
    for i, size in enumerate([(1, 1), (1, 7), (9, 1), (17, 65), (70, 120)]):
        kind, gain = TYPES[(i + scale) % 4], (1.0, 100.0)[i % 3 // 2]
        check(upsample, channels, scale, dtype, kind, (1 + i % 2, *size), device="cuda", gain=gain)


def test_current_stream_and_graph() -> None:
    arguments = [t.cuda() if isinstance(t, torch.Tensor) else t for t in example(torch.float16)]
    near, others = arguments[0], arguments[1:]
    expected = upsample(near * 2, *others)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        image = upsample(near * 2, *others)
    stream.synchronize()
    assert torch.equal(image, expected)
    graph, static = torch.cuda.CUDAGraph(), near.clone()
    with torch.cuda.graph(graph):
        captured = upsample(static, *others)
    static.copy_(near * 2)
    graph.replay()
    assert torch.equal(captured, expected)


def test_bad_inputs() -> None:
    arguments = [t.cuda() if isinstance(t, torch.Tensor) else t for t in example(torch.float16)]
    with pytest.raises(RuntimeError, match="espan::upsample: near is on cpu; it must be on"):
        upsample(arguments[0].cpu(), *arguments[1:])
    with pytest.raises(RuntimeError, match=r"espan::upsample: near has shape .* of last"):
        upsample(arguments[0][:, 1:].contiguous(), *arguments[1:])
    with pytest.raises(RuntimeError, match="espan::upsample: packed has shape"):
        upsample(*arguments[:2], arguments[2][:-8], *arguments[3:])
