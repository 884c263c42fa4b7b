"""The tail's Triton kernels on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.  The interpreter has no bfloat16.
"""

import pytest
import torch

import espan_kernels.triton.tail  # noqa: F401  (defines torch.ops.espan_triton)
from espan_kernels import pack_tail
from espan_kernels.triton.conv import BLOCK
from tests.kernels.tail_cases import check
from tests.kernels.test_tail import example

tail = torch.ops.espan_triton.tail
F16 = torch.float16
TYPES = (torch.uint8, F16, torch.float32)


@pytest.mark.parametrize(
    ("channels", "scale", "sides"),
    [
        (1, 4, 2),
        (28, 1, 3),
        (32, 4, 3),
        (48, 3, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((16, 3, 3), (26, 2, 2), (28, 3, 2), (52, 2, 3), (64, 4, 2))
        ),
    ],
)
def test_channels_and_scales(channels: int, scale: int, sides: int) -> None:
    check(tail, channels, scale, sides, F16, (torch.uint8, F16)[sides - 2], (2, 3, 5))


@pytest.mark.parametrize(
    "shape", [(2, 3, 5), pytest.param((1, 5, BLOCK + 6), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("channels", "scale", "sides"), [(5, 4, 3), (28, 1, 2), (48, 2, 3), (64, 4, 3)]
)
def test_last_1x1(channels: int, scale: int, sides: int, shape: tuple[int, int, int]) -> None:
    dtype = TYPES[shape[0] % 2]
    check(tail, channels, scale, sides, F16, dtype, shape, last_kernel=1)


def test_memory_outside_is_not_accessed() -> None:
    """A NaN beside the feature maps does not reach the image."""
    maps, wholes = [], []
    for _ in range(4):
        whole = torch.full((3, 4, 5, 48), float("nan"), dtype=F16)
        whole[1] = torch.randn(4, 5, 48)
        wholes.append(whole)
        maps.append(whole[1:2])
    for last_kernel in (1, 3):
        last = torch.randn(48, 48, last_kernel, last_kernel) / 20
        others = (torch.randn(48, 144, 1, 1) / 12, torch.randn(48), torch.randn(12, 48, 3, 3) / 20)
        packed = pack_tail(last, *others, torch.rand(12), F16)
        image = tail(*maps, packed, 48, 2, F16, None, last_kernel)
        assert image.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "scale", "sides", "dtype"),
    [
        ((1, 1, 1), 2, 2, torch.uint8),
        ((2, 9, 1), 4, 2, torch.float32),
        ((1, 2, BLOCK + 6), 3, 3, F16),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((1, 1, 7), 3, 3, F16),
                ((1, 4, BLOCK), 2, 3, torch.uint8),
                ((1, 5, BLOCK + 6), 3, 2, F16),
            )
        ),
    ],
)
def test_sizes(shape: tuple[int, int, int], scale: int, sides: int, dtype: torch.dtype) -> None:
    """One pixel, one row, one column; below, at and above a program's share of the pixels."""
    check(tail, 28, scale, sides, F16, dtype, shape)


@pytest.mark.parametrize("dtype", TYPES)
def test_out_of_range_values(dtype: torch.dtype) -> None:
    check(tail, 32, 4, 2, F16, dtype, (1, 5, 7), gain=100.0)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (-1.5, F16),
        (float("nan"), torch.uint8),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (2.5, torch.uint8),
                (float("inf"), torch.float32),
                (-float("inf"), torch.uint8),
            )
        ),
    ],
)
def test_one_value_sets_the_flag(dtype: torch.dtype, value: float) -> None:
    """The flag stays set; in uint8, NaN becomes 0, and infinity 0 or 255."""
    maps = [torch.zeros(1, 3, 5, 16, dtype=F16) for _ in range(3)]
    zero = [torch.zeros(s) for s in ((16, 16, 3, 3), (16, 32, 1, 1), (16,), (12, 16, 3, 3))]
    bias = torch.full((12,), 1.9)
    flag = torch.zeros(1, dtype=torch.int32)
    tail(*maps, None, pack_tail(*zero, bias, F16), 16, 2, dtype, flag)
    assert flag.item() == 0
    bias[7] = value  # green, lower right
    image = tail(*maps, None, pack_tail(*zero, bias, F16), 16, 2, dtype, flag)
    assert flag.item() == 1
    expected = torch.full((1, 3, 6, 10), 1.9)
    expected[:, 1, 1::2, 1::2] = value
    if dtype == torch.uint8:
        expected = 255 * expected.nan_to_num(0).clamp(0, 1)
    torch.testing.assert_close(image, expected.to(dtype), equal_nan=True)
    tail(*maps, None, pack_tail(*zero, torch.zeros(12), F16), 16, 2, dtype, flag)
    assert flag.item() == 1
    tail(*maps, None, pack_tail(*zero, bias, F16), 16, 2, dtype, None)


def test_bytes_are_rounded() -> None:
    maps = [torch.zeros(1, 2, 3, 16, dtype=F16) for _ in range(3)]
    zero = [torch.zeros(s) for s in ((16, 16, 3, 3), (16, 32, 1, 1), (16,), (12, 16, 3, 3))]
    bias = torch.linspace(-0.1, 1.1, 12)
    image = tail(*maps, None, pack_tail(*zero, bias, F16), 16, 2, torch.uint8, None)
    expected = (255 * bias.clamp(0, 1)).round().view(3, 2, 2).repeat(1, 2, 3)
    assert torch.equal(image[0], expected.to(torch.uint8))


def test_pixels_outside_the_image_do_not_set_the_flag() -> None:
    """Outside the image, the sum is the bias, 2.5 here; the products in the image subtract 1."""
    maps = [torch.zeros(1, 1, 1, 16, dtype=F16) for _ in range(3)]
    up = torch.full((12, 16, 3, 3), -1 / 16)
    weights = (torch.zeros(16, 16, 3, 3), torch.zeros(16, 32, 1, 1), torch.ones(16), up)
    packed = pack_tail(*weights, torch.full((12,), 2.5), F16)
    flag = torch.zeros(1, dtype=torch.int32)
    assert (tail(*maps, None, packed, 16, 2, F16, flag) == 1.5).all()
    assert flag.item() == 0


def test_bad_inputs() -> None:
    arguments = list(example(F16, 3))
    arguments[7] = torch.float64
    with pytest.raises(RuntimeError, match=r"dtype is .*float64; it must be uint8"):
        tail(*arguments)


def test_float32_runs_the_reference() -> None:
    check(tail, 26, 3, 3, torch.float32, torch.uint8, (1, 4, 5))
