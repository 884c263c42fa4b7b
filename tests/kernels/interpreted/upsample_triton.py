"""The upsampling layer's Triton kernel on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.  The interpreter has no bfloat16.
"""

import pytest
import torch

import espan_kernels.triton.upsample  # noqa: F401  (defines torch.ops.espan_triton)
from espan_kernels import pack_upsample
from espan_kernels.triton.conv import BLOCK
from tests.kernels.test_upsample import example
from tests.kernels.upsample_cases import check

upsample = torch.ops.espan_triton.upsample
F16 = torch.float16
TYPES = (torch.uint8, F16, torch.float32)


@pytest.mark.parametrize(
    ("channels", "scale"),
    [
        (16, 1),
        (26, 3),
        (48, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 4), (32, 4), (64, 4))),
    ],
)
def test_channels_and_scales(channels: int, scale: int) -> None:
    check(upsample, channels, scale, F16, TYPES[channels % 3], (2, 3, 5))


@pytest.mark.parametrize(
    ("shape", "scale", "dtype"),
    [
        ((1, 1, 1), 2, torch.uint8),
        ((2, 9, 1), 4, torch.float32),
        ((1, 2, BLOCK + 6), 3, F16),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ((1, 1, 7), 3, F16),
                ((1, 4, BLOCK), 2, torch.uint8),
                ((1, 5, BLOCK + 6), 3, F16),
            )
        ),
    ],
)
def test_sizes(shape: tuple[int, int, int], scale: int, dtype: torch.dtype) -> None:
    """One pixel, one row, one column; below, at and above a program's share of the pixels."""
    check(upsample, 28, scale, F16, dtype, shape)


@pytest.mark.parametrize("dtype", TYPES)
def test_out_of_range_values(dtype: torch.dtype) -> None:
    check(upsample, 32, 4, F16, dtype, (1, 5, 7), gain=100.0)


def test_bytes_are_rounded_half_to_even() -> None:
    halves = torch.arange(255) + 0.5
    values = halves / 255
    values, wanted = (t[values * 255 == halves] for t in (values, halves.round()))
    assert len(values) > 50
    for value, byte in zip(values[:: len(values) // 8], wanted[:: len(wanted) // 8], strict=True):
        bias = torch.full((3,), float(value))
        packed = pack_upsample(torch.zeros(3, 3, 3, 3), torch.zeros(3, 16, 3, 3), bias, F16)
        maps = torch.zeros(2, 1, 1, 1, 16, dtype=F16)
        image = upsample(*maps, packed, 16, 1, torch.uint8, None)
        assert image.unique().tolist() == [byte]


def test_extent_of_a_pixels_influence() -> None:
    """A NaN pixel of either map affects the 3 x 3 pixels around it, and no others."""
    packed = pack_upsample(torch.ones(12, 12, 3, 3), torch.ones(12, 20, 3, 3), torch.ones(12), F16)
    for spoilt in range(2):
        maps = [torch.zeros(1, 7, 9, p, dtype=F16) for p in (16, 32)]
        maps[spoilt][0, 3, 4, 7] = float("nan")
        flag = torch.zeros(1, dtype=torch.int32)
        found = upsample(*maps, packed, 20, 2, F16, flag).isnan().all(dim=1)[0]
        expected = torch.zeros(14, 18, dtype=torch.bool)
        expected[4:10, 6:12] = True
        assert torch.equal(found, expected)
        assert flag.item() == 1


def test_memory_outside_is_not_accessed() -> None:
    """A NaN beside the feature maps does not reach the image."""
    maps = []
    for p in (48, 32):
        whole = torch.full((3, 4, 5, p), float("nan"), dtype=F16)
        whole[1] = torch.randn(4, 5, p)
        maps.append(whole[1:2])
    weights = (torch.randn(48, 48, 3, 3) / 30, torch.randn(48, 32, 3, 3) / 30, torch.rand(48))
    packed = pack_upsample(*weights, F16)
    assert upsample(*maps, packed, 32, 4, F16, None).isfinite().all()


def test_bad_inputs() -> None:
    arguments = example(F16)
    arguments[5] = torch.float64
    with pytest.raises(RuntimeError, match=r"dtype is .*float64; it must be uint8"):
        upsample(*arguments)


def test_float32_runs_the_reference() -> None:
    check(upsample, 26, 3, torch.float32, torch.uint8, (1, 4, 5))
