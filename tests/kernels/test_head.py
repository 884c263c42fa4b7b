"""The head as a PyTorch op on the CPU: packing, reference, errors."""

import pytest
import torch
from torch import Tensor

from espan_kernels import head, pack_head
from tests.kernels.head_cases import LAYOUTS, MEAN, check, image_of

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.rand(1, 3, 5, 4), pack_head(torch.randn(20, 3, 3, 3), torch.randn(20), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", [1, 3, 5, 9, 11])
@pytest.mark.parametrize("channels", [5, 16, 28, 32, 48, 64])
def test_values(channels: int, kernel: int, dtype: torch.dtype) -> None:
    for i, shape in enumerate(((1, 1, 1), (1, 1, 7), (2, 9, 6))):
        image = image_of(shape, TYPES[(i + kernel) % 4], LAYOUTS[i])
        check(head, channels, kernel, dtype, image, with_mean=i > 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("unshuffle", [2, 4])
@pytest.mark.parametrize("channels", [5, 32, 48, 64])
def test_unshuffle(channels: int, unshuffle: int, dtype: torch.dtype) -> None:
    """Also sizes that are not multiples, which reflection extends."""
    for i, shape in enumerate(((1, 4, 4), (1, 5, 6), (2, 15, 23))):
        image = image_of(shape, TYPES[(i + unshuffle // 2) % 4], LAYOUTS[i])
        check(head, channels, 3, dtype, image, with_mean=i > 0, unshuffle=unshuffle)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("unshuffle", [1, 2])
def test_activation(unshuffle: int, activation: str, dtype: torch.dtype) -> None:
    image = image_of((2, 9, 6), torch.float32, "planar")
    check(head, 28, 3, dtype, image, unshuffle=unshuffle, activation=activation)


@pytest.mark.parametrize("image_dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout: str, image_dtype: torch.dtype) -> None:
    image = image_of((2, 5, 4), image_dtype, layout)
    _, packed = example(torch.float16)
    for mean in (None, MEAN):
        arguments = (image, packed, mean, 20, 3, 1, "none")
        torch.library.opcheck(torch.ops.espan.head.default, arguments)


def test_compile() -> None:
    image, packed = example()
    compiled = torch.compile(lambda x: head(x + 1, packed, MEAN, 20, 3) * 2, fullgraph=True)
    torch.testing.assert_close(compiled(image), head(image + 1, packed, MEAN, 20, 3) * 2)


def test_gradients_are_rejected() -> None:
    image, packed = example()
    with pytest.raises(RuntimeError, match="espan::head has no gradient: it is for inference"):
        head(image.requires_grad_(), packed, None, 20, 3)


IMAGE, PACKED = example()


@pytest.mark.parametrize(
    ("image", "packed", "mean", "channels", "kernel", "message"),
    [
        (IMAGE.double(), PACKED, None, 20, 3, ".*(float64|Double); it must be uint8, float16"),
        (IMAGE[:, :2], PACKED, None, 20, 3, r"image has shape \[1, 2, 5, 4\]; it must be \(N, 3"),
        (IMAGE[:0], PACKED, None, 20, 3, r"image has shape \[0, 3, 5, 4\]; .* not empty"),
        (IMAGE, PACKED, None, 0, 3, "channels is 0; it must be 1 to 64"),
        (IMAGE, PACKED, None, 20, 4, "kernel is 4; it must be odd, 1 to 11"),
        (IMAGE, PACKED, None, 20, 13, "kernel is 13; it must be odd, 1 to 11"),
        (IMAGE, PACKED, None, 20, 9, r"packed has shape \[3104\]; .* have the shape \[18464\]"),
        (IMAGE, PACKED, MEAN.half(), 20, 3, r"mean must be .*float32 values of shape \[3\]"),
        (IMAGE, PACKED, MEAN[:2], 20, 3, r"mean must be .*float32 values of shape \[3\]"),
        (IMAGE, PACKED, MEAN[None], 20, 3, r"mean must be .*float32 values of shape \[3\]"),
        (IMAGE, PACKED, MEAN.to("meta"), 20, 3, "mean is on meta; it must be on the device of"),
        (IMAGE, PACKED.to("meta"), None, 20, 3, "packed is on meta; it must be on the device of"),
    ],
)
def test_bad_inputs(
    image: Tensor, packed: Tensor, mean: Tensor | None, channels: int, kernel: int, message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"espan::head: {message}"):
        head(image, packed, mean, channels, kernel)


def test_bad_weights() -> None:
    with pytest.raises(RuntimeError, match=r"weight has shape \[20, 4, 3, 3\]; it must have"):
        pack_head(torch.zeros(20, 4, 3, 3), torch.zeros(20), torch.float16)
    with pytest.raises(RuntimeError, match=r"bias has shape \[19\]; it must have the shape \[20\]"):
        pack_head(torch.zeros(20, 3, 3, 3), torch.zeros(19), torch.float16)
    with pytest.raises(RuntimeError, match="kernel is 5; with unshuffle 2 it must be 3"):
        pack_head(torch.zeros(20, 12, 5, 5), torch.zeros(20), torch.float16)
    with pytest.raises(RuntimeError, match="activation is mish; it must be none, silu or relu"):
        pack_head(torch.zeros(20, 3, 3, 3), torch.zeros(20), torch.float16, activation="mish")


@pytest.mark.parametrize(
    ("unshuffle", "activation", "message"),
    [
        (3, "none", "unshuffle is 3; it must be 1, 2 or 4"),
        (
            4,
            "none",
            r"image has shape \[1, 3, 5, 3\]; with unshuffle 4, its height and width must be",
        ),
        (2, "none", r"packed has shape \[3104\]; .* have the shape \[9248\]"),
        (1, "mish", "activation is mish; it must be none, silu or relu"),
    ],
)
def test_bad_options(unshuffle: int, activation: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"espan::head: {message}"):
        head(IMAGE[..., :3], PACKED, None, 20, 3, unshuffle, activation)
