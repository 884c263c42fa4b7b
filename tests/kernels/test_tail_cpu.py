"""The tail's CPU kernels: values by every path, at every kind of size, and what they touch."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espan_kernels import _library, pack_tail, tail
from tests.kernels import cpu_cases, winograd_bound
from tests.kernels.cpu_cases import FLOATS, NAN, SIZES
from tests.kernels.tail_cases import check

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)

TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)
CHANNELS = (1, 4, 5, 16, 17, 26, 28, 32, 48, 52, 64)


def example(
    *shape: int,
    channels: int = 20,
    sides: int = 2,
    scale: int = 2,
    dtype: torch.dtype = torch.float32,
    image_dtype: torch.dtype = torch.float32,
) -> list[Any]:
    """The arguments of tail."""
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    c, rows = channels, 3 * scale * scale
    packed = pack_tail(
        random(c, c, 3, 3) / 14,
        random(c, sides * c, 1, 1) / 6,
        random(c),
        random(rows, c, 3, 3) / 50,
        random(rows) / 4 + 0.5,
        dtype,
    )
    maps = [random(*shape, -(-c // 16) * 16).to(dtype) for _ in range(4)]
    for t in maps:
        t[..., c:] = 0
    head, first, last, activation = maps
    extra = activation if sides == 3 else None
    return [head, first, last, extra, packed, c, scale, image_dtype, None]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(cpu_path: str, channels: int, dtype: torch.dtype) -> None:
    for scale in (1, 2, 3, 4):
        kind, sides = TYPES[(channels + scale) % 4], 2 + scale % 2
        check(tail, channels, scale, sides, dtype, kind, (2, 5, 9), winograd=True)


@pytest.mark.parametrize("image_dtype", TYPES)
def test_sizes(cpu_path: str, image_dtype: torch.dtype) -> None:
    for i, size in enumerate(SIZES):
        channels, scale, dtype = (28, 5)[i % 2], 1 + i % 4, FLOATS[i % 3]
        shape = (1, *size)
        check(tail, channels, scale, 2 + i // 2 % 2, dtype, image_dtype, shape, winograd=True)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", CHANNELS)
def test_all_sizes(cpu_path: str, channels: int, scale: int) -> None:
    sizes = [*itertools.product(range(1, 11), repeat=2), *SIZES, (40, 230)]
    for i, size in enumerate(sizes):
        kind, sides, shape = TYPES[i % 4], 2 + i % 2, (1, *size)
        check(tail, channels, scale, sides, FLOATS[i % 3], kind, shape, winograd=True)


@pytest.mark.parametrize("kind", winograd_bound.KINDS)
@pytest.mark.parametrize(("channels", "scale"), [(3, 1), (16, 2), (28, 3), (48, 4), (64, 4)])
def test_the_last_layer_keeps_the_bound(
    cpu_path: str, channels: int, scale: int, kind: str
) -> None:
    """What it reads is the head's map, copied by a 1x1 convolution."""
    generator = torch.Generator().manual_seed(channels)
    c, rows = channels, 3 * scale * scale
    weight = torch.randn(rows, c, 3, 3, generator=generator)
    side = torch.cat([torch.eye(c), torch.zeros(c, c)], dim=1)[:, :, None, None]
    nothing = torch.zeros(c, c, 3, 3), torch.zeros(c), torch.zeros(rows)
    packed = pack_tail(nothing[0], side, nothing[1], weight, nothing[2], torch.float32)
    for size in [(1, 1), (4, 4), (5, 9), (6, 130)]:
        x = winograd_bound.inputs(kind, 2, c, *size)
        features = torch.zeros(2, *size, -(-c // 16) * 16)
        features[..., :c] = x.permute(0, 2, 3, 1)
        zeros = torch.zeros_like(features)
        y = tail(features, zeros, zeros, None, packed, c, scale, torch.float32)
        exact = F.conv2d(x.double(), weight.double(), padding=1)
        error = (F.pixel_unshuffle(y, scale) - exact).abs()
        allowed = winograd_bound.bound(x, weight)
        assert (error <= allowed).all(), (error / allowed).max()


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_the_channels_are_read(cpu_path: str, dtype: torch.dtype) -> None:
    """Not what pads them, and nothing around; a view may begin anywhere."""
    arguments = example(2, 5, 7, sides=3, dtype=dtype, image_dtype=dtype)
    expected = tail(*arguments)
    for i in range(4):
        arguments[i] = cpu_cases.in_buffer(arguments[i])
        arguments[i][..., 20:] = NAN
    cpu_cases.assert_same([tail(*arguments)], [expected])


@pytest.mark.parametrize("image_dtype", TYPES)
def test_nothing_is_left_from_the_call_before(cpu_path: str, image_dtype: torch.dtype) -> None:
    for size in [(1, 1), (6, 11), (9, 120)]:
        arguments = example(1, *size, image_dtype=image_dtype)
        expected = tail(*arguments)
        cpu_cases.poison_workspace()
        cpu_cases.assert_same([tail(*arguments)], [expected])


@pytest.mark.parametrize("image_dtype", TYPES)
def test_output_is_written_whole(cpu_path: str, image_dtype: torch.dtype) -> None:
    arguments = example(2, 9, 31, scale=3, image_dtype=image_dtype)
    cpu_cases.check_written_whole(lambda: [tail(*arguments)])


@pytest.mark.parametrize("where", [(0, 0, 0), (1, 6, 10), (1, 3, 5)])
@pytest.mark.parametrize("value", [2.1, -1.1, NAN, float("inf"), -float("inf")])
def test_flag(cpu_path: str, value: float, where: tuple[int, int, int]) -> None:
    """One value of one pixel of one image in a batch."""
    rows = 12
    up = torch.zeros(rows, 20, 3, 3)
    up[7, 3, 1, 1] = 1
    side = torch.cat([torch.eye(20), torch.zeros(20, 20)], dim=1)[:, :, None, None]
    zeros = torch.zeros(20, 20, 3, 3), torch.zeros(20), torch.zeros(rows)
    packed = pack_tail(zeros[0], side, zeros[1], up, zeros[2], torch.float32)
    for bad in (0.5, value):
        maps = torch.zeros(3, 2, 7, 11, 32)
        maps[(0, *where, 3)] = bad
        flag = torch.zeros(1, dtype=torch.int32)
        for kind in TYPES:
            tail(*maps.unbind(), None, packed, 20, 2, kind, flag)
            assert flag.item() == (bad == value or torch.tensor(bad).isnan().item())
            flag.zero_()


def test_result_does_not_depend_on_threads(cpu_path: str, threads: None) -> None:
    arguments = example(2, 70, 90, scale=4, image_dtype=torch.uint8)
    cpu_cases.check_threads(lambda: [tail(*arguments)])


def test_many_python_threads() -> None:
    runs = []
    for i in range(8):
        about = {"channels": 10 + 7 * i, "scale": 1 + i % 4, "sides": 2 + i % 2}
        arguments = example(1, 5 + 9 * i, 60 - 6 * i, image_dtype=TYPES[i % 4], **about)
        runs.append(lambda arguments=arguments: [tail(*arguments)])
    cpu_cases.check_python_threads(runs)
