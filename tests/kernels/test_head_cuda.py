"""The head's kernels on a GPU.  Needs an NVIDIA GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import backends, head, pack_head
from tests.kernels.head_cases import LAYOUTS, MEAN, check, image_of

CUDA = backends.available()["cuda"]
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not CUDA.available, reason=CUDA.reason)]

FLOATS = (torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", [1, 3, 5, 7, 9, 11])
@pytest.mark.parametrize("channels", [1, 16, 28, 32, 48, 52, 64])
def test_values(channels: int, kernel: int, dtype: torch.dtype) -> None:
    sizes = [(1, 1), (1, 7), (9, 1), (15, 31), (16, 32), (17, 33), (70, 120)]
    for i, size in enumerate(sizes):
        image = image_of((1 + i % 2, *size), TYPES[(i + kernel) % 4], LAYOUTS[i % 2])
        check(head, channels, kernel, dtype, image, with_mean=i % 3 > 0, device="cuda")


@pytest.mark.parametrize("hopper", ["1", "0"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("unshuffle", [2, 4])
@pytest.mark.parametrize("channels", [1, 28, 48, 64])
def test_unshuffle(
    channels: int, unshuffle: int, dtype: torch.dtype, hopper: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the first kernels on Hopper."""
    monkeypatch.setenv("ESPAN_HOPPER", hopper)
    for i, size in enumerate([(4, 4), (5, 131), (67, 33), (140, 257)]):
        image = image_of((1 + i % 2, *size), TYPES[(i + unshuffle // 2) % 4], LAYOUTS[i % 2])
        check(
            head,
            channels,
            3,
            dtype,
            image,
            with_mean=i % 2 > 0,
            unshuffle=unshuffle,
            device="cuda",
        )


@pytest.mark.parametrize("hopper", ["1", "0"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize(("channels", "kernel"), [(13, 3), (32, 3), (48, 3), (64, 3), (32, 5)])
def test_activation(
    channels: int,
    kernel: int,
    activation: str,
    dtype: torch.dtype,
    hopper: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ESPAN_HOPPER", hopper)
    image = image_of((2, 70, 130), torch.uint8, "interleaved")
    check(head, channels, kernel, dtype, image, activation=activation, device="cuda")


@pytest.mark.parametrize("image_dtype", TYPES)
def test_strided_image(image_dtype: torch.dtype) -> None:
    def run(image: Tensor, packed: Tensor, mean: Tensor | None, *options: Any) -> Tensor:
        whole = torch.full((2, 4, 23, 37), 3, dtype=image.dtype, device="cuda")
        view = whole[:, 1:, 1:-1, 3:36]
        view.copy_(image)
        return head(view, packed, mean, *options)

    image = image_of((2, 21, 33), image_dtype, "planar")
    check(run, 32, 9, torch.float16, image, device="cuda")


def test_current_stream_and_graph() -> None:
    packed = pack_head(torch.randn(32, 3, 9, 9), torch.randn(32), torch.float16, "cuda")
    image, mean = torch.rand(1, 3, 200, 300, device="cuda"), MEAN.cuda()
    expected = head(image * 2, packed, mean, 32, 9)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        features = head(image * 2, packed, mean, 32, 9)
    stream.synchronize()
    assert torch.equal(features, expected)
    graph, static = torch.cuda.CUDAGraph(), image.clone()
    with torch.cuda.graph(graph):
        captured = head(static, packed, mean, 32, 9)
    static.copy_(image * 2)
    graph.replay()
    assert torch.equal(captured, expected)


def test_bad_inputs() -> None:
    packed = pack_head(torch.randn(32, 3, 3, 3), torch.randn(32), torch.float16, "cuda")
    image = torch.rand(1, 3, 4, 5, device="cuda")
    with pytest.raises(RuntimeError, match=r"espan::head: the dtype of image is float64; it must"):
        head(image.double(), packed, None, 32, 3)
    with pytest.raises(RuntimeError, match="espan::head: packed has dtype float32; on CUDA"):
        head(image, packed.float(), None, 32, 3)
    with pytest.raises(RuntimeError, match="espan::head: packed is on cpu"):
        head(image, packed.cpu(), None, 32, 3)
    with pytest.raises(RuntimeError, match="espan::head: mean is on cpu"):
        head(image, packed, MEAN, 32, 3)
    with pytest.raises(RuntimeError, match="espan::head: unshuffle is 3; it must be 1, 2 or 4"):
        head(image, packed, None, 32, 3, 3)
    with pytest.raises(RuntimeError, match="espan::head: kernel is 5; with unshuffle 2 it must be"):
        head(image, packed, None, 32, 5, 2)
    with pytest.raises(
        RuntimeError, match="espan::head: activation is mish; it must be none, silu"
    ):
        head(image, packed, None, 32, 3, 1, "mish")
    with pytest.raises(
        RuntimeError, match="with unshuffle 4, its height and width must be at least"
    ):
        head(image[:, :, :3], packed, None, 32, 3, 4)
