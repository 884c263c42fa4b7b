"""The head's CPU kernels: values by every path, at every kind of size, and what they touch."""

import itertools

import pytest
import torch
from torch import Tensor

from espan_kernels import _library, head, pack_head
from tests.kernels import cpu_cases
from tests.kernels.cpu_cases import FLOATS, SIZES
from tests.kernels.head_cases import LAYOUTS, MEAN, check, image_of

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)

TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
CHANNELS = (1, 5, 16, 17, 28, 32, 48, 52, 64)
KERNELS = (1, 3, 5, 7, 9, 11)


def example(channels: int = 20, kernel: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, 3, kernel, kernel, generator=generator) / kernel
    return pack_head(weight, torch.randn(channels, generator=generator), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(cpu_path: str, channels: int, dtype: torch.dtype) -> None:
    for i, kernel in enumerate(KERNELS):
        image = image_of((2, 6, 9), TYPES[i % 4], LAYOUTS[i % 3])
        check(head, channels, kernel, dtype, image, with_mean=i % 2 == 0)


@pytest.mark.parametrize("image_dtype", TYPES)
def test_sizes(cpu_path: str, image_dtype: torch.dtype) -> None:
    for i, size in enumerate(SIZES):
        image = image_of((1, *size), image_dtype, LAYOUTS[i % 3])
        check(head, (28, 5)[i % 2], (9, 3)[i % 2], FLOATS[i % 3], image)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_all_sizes(cpu_path: str, channels: int, kernel: int) -> None:
    sizes = [*itertools.product(range(1, 11), repeat=2), *SIZES, (40, 230)]
    for i, size in enumerate(sizes):
        image = image_of((1, *size), TYPES[i % 4], LAYOUTS[i % 3])
        check(head, channels, kernel, FLOATS[i % 3], image)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_left_from_the_call_before(cpu_path: str, dtype: torch.dtype) -> None:
    packed = example(dtype=dtype)
    for size in [(1, 1), (6, 11), (9, 120)]:
        image = image_of((1, *size), torch.float32, "strided")
        expected = head(image, packed, MEAN, 20, 5)
        assert (expected[..., 20:] == 0).all()
        cpu_cases.poison_workspace()
        cpu_cases.assert_same([head(image, packed, MEAN, 20, 5)], [expected])


def test_output_is_written_whole(cpu_path: str) -> None:
    packed, image = example(), image_of((2, 9, 31), torch.uint8, "planar")
    cpu_cases.check_written_whole(lambda: [head(image, packed, MEAN, 20, 5)])


def test_result_does_not_depend_on_threads(cpu_path: str, threads: None) -> None:
    packed, image = example(), image_of((2, 70, 90), torch.uint8, "interleaved")
    cpu_cases.check_threads(lambda: [head(image, packed, MEAN, 20, 5)])


def test_many_python_threads() -> None:
    runs = []
    for i in range(8):
        image = image_of((1, 5 + 9 * i, 60 - 6 * i), TYPES[i % 4], "planar")
        packed = example(10 + 7 * i, (3, 9)[i % 2])
        runs.append(
            lambda a=(image, packed, MEAN, 10 + 7 * i, (3, 9)[i % 2]): [head(*a)],
        )
    cpu_cases.check_python_threads(runs)
