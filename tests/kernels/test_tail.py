"""The tail as a PyTorch op on the CPU: packing, reference, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import pack_tail, tail
from tests.kernels.tail_cases import check

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


def example(dtype: torch.dtype = torch.float32, sides: int = 2) -> list[Any]:
    """The arguments of tail, for 20 channels and x2."""
    packed = pack_tail(
        torch.randn(20, 20, 3, 3) / 14,
        torch.randn(20, sides * 20, 1, 1) / 6,
        torch.randn(20),
        torch.randn(12, 20, 3, 3) / 50,
        torch.rand(12),
        dtype,
    )
    head, first, last, activation = (torch.randn(1, 5, 4, 32).to(dtype) for _ in range(4))
    flag = torch.zeros(1, dtype=torch.int32)
    return [head, first, last, activation if sides == 3 else None, packed, 20, 2, dtype, flag]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [5, 16, 28, 32, 48, 64])
def test_values(channels: int, scale: int, dtype: torch.dtype) -> None:
    for i, shape in enumerate(((1, 1, 1), (1, 1, 7), (2, 9, 6))):
        kind = TYPES[(i + scale) % 4]
        gain = (1.0, 100.0)[i % 2]
        check(tail, channels, scale, 2 + i % 2, dtype, kind, shape, gain=gain)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("channels", "scale"), [(5, 2), (28, 4), (48, 3), (64, 4)])
def test_last_1x1(channels: int, scale: int, dtype: torch.dtype) -> None:
    for i, shape in enumerate(((1, 1, 1), (2, 9, 6))):
        kind = TYPES[(i + scale) % 4]
        check(tail, channels, scale, 2 + i % 2, dtype, kind, shape, last_kernel=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_are_flagged(bad: float) -> None:
    arguments = example()
    arguments[2][0, 1, 1, 5] = bad
    tail(*arguments)
    assert arguments[-1].item() == 1
    plausible = example()
    for t in plausible[:3]:
        t.zero_()
    plausible[-1].fill_(1)
    tail(*plausible)
    assert plausible[-1].item() == 1  # left unchanged


@pytest.mark.parametrize("image_dtype", TYPES)
@pytest.mark.parametrize("sides", [2, 3])
def test_opcheck(sides: int, image_dtype: torch.dtype) -> None:
    arguments = example(torch.float16, sides)
    arguments[7] = image_dtype
    torch.library.opcheck(torch.ops.espan.tail.default, (*arguments, 3))
    torch.library.opcheck(torch.ops.espan.tail.default, (*arguments[:-1], None, 3))


def test_compile() -> None:
    arguments = example()

    def run(x: Tensor, flag: Tensor) -> Tensor:
        return tail(x, *arguments[1:-1], flag) + 1

    expected = run(arguments[0], arguments[-1])
    flag = torch.zeros_like(arguments[-1])
    torch.testing.assert_close(torch.compile(run, fullgraph=True)(arguments[0], flag), expected)
    assert torch.equal(flag, arguments[-1])


def test_gradients_are_rejected() -> None:
    arguments = example()
    arguments[0].requires_grad_()
    with pytest.raises(RuntimeError, match="espan::tail has no gradient: it is for inference"):
        tail(*arguments)


HEAD, FIRST, LAST, ACTIVATION, PACKED, CHANNELS, SCALE, DTYPE, FLAG = range(9)


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (LAST, torch.zeros(1, 5, 4, 20), r"last has shape \[1, 5, 4, 20\]; it must be \(N, H, W"),
        (LAST, torch.zeros(0, 5, 4, 32), r"last has shape \[0, 5, 4, 32\]; it must not be empty"),
        (HEAD, torch.zeros(1, 5, 5, 32), r"head has shape \[1, 5, 5, 32\]; .* of last"),
        (FIRST, torch.zeros(1, 5, 4, 32).half(), "first has dtype float16; .* of last, float32"),
        (ACTIVATION, torch.zeros(1, 5, 4, 32), r"packed has shape \[41008\]; .* \[43056\]"),
        (PACKED, torch.zeros(7), r"packed has shape \[7\]; .* must have the shape \[41008\]"),
        (PACKED, torch.zeros(7).half(), "packed has dtype float16; it must be float32"),
        (CHANNELS, 65, "channels is 65; it must be 1 to 64"),
        (SCALE, 5, "scale is 5; it must be 1 to 4"),
        (DTYPE, torch.float64, "dtype is .*float64; it must be uint8, float16"),
        (FLAG, torch.zeros(2).int(), "flag must be one int32 element"),
        (FLAG, torch.zeros(1), "flag must be one int32 element"),
        (FLAG, torch.zeros(1, device="meta").int(), "flag is on meta; it must be on the device"),
    ],
)
def test_bad_inputs(which: int, value: Any, message: str) -> None:
    arguments = example()
    arguments[which] = value
    with pytest.raises(RuntimeError, match=f"^espan::tail: {message}"):
        tail(*arguments)


def test_bad_weights() -> None:
    good = [
        torch.zeros(5, 5, 3, 3),
        torch.zeros(5, 10, 1, 1),
        torch.zeros(5),
        torch.zeros(12, 5, 3, 3),
        torch.zeros(12),
    ]
    pack_tail(*good, torch.float16)
    with pytest.raises(RuntimeError, match=r"side_weight has shape \[5, 11, 1, 1\]"):
        pack_tail(good[0], torch.zeros(5, 11, 1, 1), *good[2:], torch.float16)
    with pytest.raises(RuntimeError, match="the concat has 1 sides; it must have 2 or 3"):
        pack_tail(good[0], torch.zeros(5, 5, 1, 1), *good[2:], torch.float16)
    with pytest.raises(RuntimeError, match=r"up_bias has shape \[11\]; it must have"):
        pack_tail(*good[:4], torch.zeros(11), torch.float16)
