"""The upsampling layer as a PyTorch op on the CPU: packing, reference, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import pack_upsample, upsample
from tests.kernels.upsample_cases import check

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def example(dtype: torch.dtype = torch.float32) -> list[Any]:
    """Arguments with 20 channels, scale 3 and images of the feature maps' dtype."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(27, n, 3, 3, generator=generator) for n in (27, 20)]
    packed = pack_upsample(*weights, torch.randn(27, generator=generator), dtype)
    maps = [torch.randn(1, 5, 4, 32, generator=generator).to(dtype) for _ in range(2)]
    return [*maps, packed, 20, 3, dtype, torch.zeros(1, dtype=torch.int32)]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [5, 16, 28, 32, 48, 64])
def test_values(channels: int, scale: int, dtype: torch.dtype) -> None:
    for i, shape in enumerate(((1, 1, 1), (1, 1, 7), (2, 9, 6))):
        gain = (1.0, 100.0)[i % 2]
        check(upsample, channels, scale, dtype, TYPES[(i + scale) % 4], shape, gain=gain)


@pytest.mark.parametrize("image_dtype", TYPES)
def test_opcheck(image_dtype: torch.dtype) -> None:
    arguments = example(torch.float16)
    arguments[5] = image_dtype
    torch.library.opcheck(torch.ops.espan.upsample.default, tuple(arguments))
    torch.library.opcheck(torch.ops.espan.upsample.default, (*arguments[:-1], None))


def test_compile() -> None:
    arguments = example()

    def run(x: Tensor, flag: Tensor) -> Tensor:
        return upsample(x, *arguments[1:-1], flag) + 1

    expected = run(arguments[0], arguments[-1])
    flag = torch.zeros_like(arguments[-1])
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(arguments[0], flag), expected)
    assert torch.equal(flag, arguments[-1])


def test_gradients_are_rejected() -> None:
    arguments = example()
    arguments[0].requires_grad_()
    with pytest.raises(RuntimeError, match="espan::upsample has no gradient: it is for inference"):
        upsample(*arguments)


NEAR, LAST, PACKED, CHANNELS, SCALE, DTYPE, FLAG = range(7)


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (LAST, torch.zeros(1, 5, 4, 20), r"last has shape \[1, 5, 4, 20\]; it must be \(N, H, W"),
        (LAST, torch.zeros(0, 5, 4, 32), r"last has shape \[0, 5, 4, 32\]; it must not be empty"),
        (
            NEAR,
            torch.zeros(1, 5, 4, 27),
            r"near has shape \[1, 5, 4, 27\]; it must be \(N, H, W, 32",
        ),
        (NEAR, torch.zeros(1, 5, 5, 32), r"near has shape \[1, 5, 5, 32\].* of last"),
        (NEAR, torch.zeros(1, 5, 4, 32).half(), "near has .*float16; it must have .* of last"),
        (
            NEAR,
            torch.zeros(1, 5, 4, 32, device="meta"),
            "near is on meta; it must be on the device",
        ),
        (PACKED, torch.zeros(7), r"packed has shape \[7\]; .* must have the shape \[73776\]"),
        (PACKED, torch.zeros(7).half(), "packed has dtype float16; it must be float32"),
        (CHANNELS, 65, "channels is 65; it must be 1 to 64"),
        (SCALE, 5, "scale is 5; it must be 1 to 4"),
        (DTYPE, torch.float64, "dtype is .*float64; it must be uint8, float16"),
        (FLAG, torch.zeros(2).int(), "flag must be one int32 element"),
    ],
)
def test_bad_inputs(which: int, value: Any, message: str) -> None:
    arguments = example()
    arguments[which] = value
    with pytest.raises(RuntimeError, match=f"^espan::upsample: {message}"):
        upsample(*arguments)


def test_bad_weights() -> None:
    good = [torch.zeros(12, 12, 3, 3), torch.zeros(12, 5, 3, 3), torch.zeros(12)]
    pack_upsample(*good, torch.float16)
    with pytest.raises(RuntimeError, match=r"near_weight has shape \[12, 11, 3, 3\]"):
        pack_upsample(torch.zeros(12, 11, 3, 3), *good[1:], torch.float16)
    with pytest.raises(RuntimeError, match=r"last_weight has shape \[11, 5, 3, 3\]"):
        pack_upsample(good[0], torch.zeros(11, 5, 3, 3), good[2], torch.float16)
