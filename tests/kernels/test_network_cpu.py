"""The op `network` on every CPU path: values at all sizes, and reproducibility."""

import itertools
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from espan import checkpoints
from espan.engines.streamed import layers_of
from espan.evaluation.metrics import psnr
from espan.folding import fold
from espan_kernels import _library, describe_network, network, pack_network
from tests.kernels.network_cases import (
    ESPAN,
    FAMILY,
    NEWER,
    SPAN,
    SPANF3,
    SPANV2,
    Case,
    image,
    photographs,
)
from tests.kernels.winograd_reference import WINOGRAD, by_winograd
from tests.tolerance import THREE_PRODUCTS, assert_accurate

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)

# Below, at and above a pixel, a tile of 4, and blocks of 28 tiles.
SIZES = [(1, 1), (1, 9), (2, 3), (4, 4), (5, 8), (7, 1), (9, 13), (12, 17), (33, 5), (3, 117)]


def assert_close(case: Case, x: Tensor, packed: Tensor | None = None) -> None:
    assert _library.compiled is not None
    y, ranges = case.run(x, packed)
    if _library.compiled.cpu_path() == "amx":
        assert_accurate(y, partial(case.reference, x), **THREE_PRODUCTS)
    else:
        key = (str(case), x.shape, x.numpy().tobytes())
        with by_winograd():
            assert_accurate(y, partial(case.reference, x), factor=WINOGRAD, key=key)
    assert torch.equal(ranges[:, 0], y.amin((1, 2, 3)))
    assert torch.equal(ranges[:, 1], y.amax((1, 2, 3)))
    assert not ranges[:, 2].any()


def fits(case: Case, size: tuple[int, int]) -> bool:
    """Whether an image is large enough to be unshuffled."""
    return min(size) >= case.architecture.unshuffle


@pytest.mark.parametrize(
    "case",
    [
        *(FAMILY + NEWER)[::2],
        *(pytest.param(case, marks=pytest.mark.slow) for case in (FAMILY + NEWER)[1::2]),
    ],
    ids=str,
)
def test_family(cpu_path: str, case: Case) -> None:
    packed = case.pack()
    smallest = case.architecture.unshuffle
    for size in [(smallest, smallest), (6, 11)]:
        assert_close(case, image(2, 3, *size), packed)


@pytest.mark.parametrize(
    "case",
    [
        FAMILY[3],
        NEWER[1],
        NEWER[8],
        *(pytest.param(case, marks=pytest.mark.slow) for case in (FAMILY[5], NEWER[5], NEWER[9])),
    ],
    ids=str,
)
def test_sizes(cpu_path: str, case: Case) -> None:
    packed = case.pack()
    for size in SIZES:
        if fits(case, size):
            assert_close(case, image(1, 3, *size), packed)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILY + NEWER, ids=str)
def test_all_sizes_of_the_family(cpu_path: str, case: Case) -> None:
    packed = case.pack()
    for size in [*itertools.product(range(1, 11), repeat=2), *SIZES, (40, 230), (131, 67)]:
        if fits(case, size):
            assert_close(case, image(1, 3, *size), packed)


@pytest.mark.parametrize(
    "case",
    [ESPAN, SPAN, FAMILY[3], FAMILY[4], FAMILY[9], NEWER[0], NEWER[1], NEWER[2], NEWER[6]],
    ids=str,
)
def test_uint8_results_are_the_rounded_floats(cpu_path: str, case: Case) -> None:
    """uint8 in and out equals the clamped and rounded float result; the range is the same."""
    packed = case.pack()
    for size in [(1, 1), (5, 9), (8, 130)]:
        if not fits(case, size):
            continue
        x = image(2, 3, *size, dtype=torch.uint8)
        y, ranges = case.run(x, packed)
        wide, wide_ranges = case.run(x.float() / 255, packed)
        assert torch.equal(y, wide.clamp(0, 1).mul(255).round().to(torch.uint8))
        assert torch.equal(ranges, wide_ranges)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert wide.is_contiguous()


@pytest.mark.parametrize("case", [ESPAN, NEWER[0], NEWER[8]], ids=str)
def test_layouts(case: Case) -> None:
    """The input may have any strides; memory between its pixels, NaN if possible, is not read."""
    for dtype, other in ((torch.float32, float("nan")), (torch.uint8, 200)):
        x = image(2, 3, 7, 10, dtype=dtype)
        expected, _ = case.run(x)
        around = torch.full((2, 9, 24, 5), other, dtype=dtype)
        inside = around[:, 1:8, 2:22:2, 1:4].permute(0, 3, 1, 2)
        inside.copy_(x)
        flipped = x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)
        for view in (x.to(memory_format=torch.channels_last), inside, flipped):
            assert torch.equal(case.run(view)[0], expected)
        same = x[:1].expand(3, -1, -1, -1)
        assert torch.equal(case.run(same)[0], expected[:1].expand(3, -1, -1, -1))


def test_empty() -> None:
    for size in [(0, 3, 4, 5), (1, 3, 0, 5), (2, 3, 4, 0)]:
        y, ranges = ESPAN.run(torch.zeros(size))
        assert y.shape == (size[0], 3, 4 * size[2], 4 * size[3])
        assert ranges.tolist() == [[0.0, 0.0, 0.0]] * size[0]


@pytest.mark.parametrize("case", [Case(16, (3, 2), head_kernel=5), NEWER[1], NEWER[8]], ids=str)
def test_result_does_not_depend_on_threads(cpu_path: str, threads: None, case: Case) -> None:
    packed, x = case.pack(), image(1, 3, 70, 90)
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        results.append(case.run(x, packed))
    for y, ranges in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(ranges, results[0][1])


@pytest.mark.parametrize(
    ("case", "height", "width", "reach"),
    [
        # 59 rows of 288 bytes a pixel: 66 MB, of which 56 may be kept; amx keeps 32.
        (Case(70, (2,), head_kernel=3, scale=1), 5, 3900, 4 * 6),
        # Strips of unshuffled pixels begin at multiples of 4 x 2 pixels of the image.
        (Case(70, (2,), scale=1, more=(*SPANF3, ("unshuffle", 2))), 10, 9700, 8 * 6),
        (Case(60, (3,), scale=1, more=SPANV2), 5, 7900, 4 * 6),
    ],
    ids=str,
)
def test_result_does_not_depend_on_strips(
    cpu_path: str, case: Case, height: int, width: int, reach: int
) -> None:
    """Part of an image wide enough for several strips equals that part alone, to the last bit.

    The part begins at a tile, and the pixels compared lie beyond the reach of its own border: a
    tile for each 3x3 convolution, because rounding in a tile depends on all that it reads.
    """
    packed = case.pack()
    x = image(1, 3, height, width)
    whole, _ = case.run(x, packed)
    for start in range(0, width - 200, 104):  # a multiple of 4 and of 4 x 2
        part, _ = case.run(x[..., start : start + 200], packed)
        left = 0 if start == 0 else reach
        assert torch.equal(
            whole[..., start + left : start + 200 - reach], part[..., left : 200 - reach]
        )


def test_many_python_threads() -> None:
    case = Case(20, (3, 2))
    packed = case.pack()
    wrong: list[int] = []

    def work(seed: int) -> None:
        x = image(1, 3, 5 + 9 * seed, 60 - 6 * seed)
        expected, _ = case.run(x, packed)
        if not all(torch.equal(case.run(x, packed)[0], expected) for _ in range(10)):
            wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_non_finite_values_are_reported(cpu_path: str) -> None:
    case = Case(16, (2,), scale=2)
    packed = case.pack()
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = image(3, 3, 30, 30)
        x[1, 2, 17, 3] = bad
        y, ranges = case.run(x, packed)
        assert ranges[:, 2].tolist() == [0, 1, 0]
        assert torch.equal(y[0], case.run(x[:1], packed)[0][0])
        assert not y[1].isfinite().all()
        far = y[1, :, 48:, 30:]  # nothing that it reaches, by whole tiles
        assert torch.equal(far, case.run(image(3, 3, 30, 30), packed)[0][1, :, 48:, 30:])


def test_activations_beyond_the_exponential() -> None:
    """Sums of 1e4 drive SiLU and gate to where e^x overflows or is subnormal."""
    case = Case(16, (3,), gain=1e5, scale=1)
    assert_close(case, image(1, 3, 9, 9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_output_is_written_whole(cpu_path: str, dtype: torch.dtype) -> None:
    """The allocator returns a block just freed, which is full of a pattern: no byte may remain."""
    packed = SPAN.pack()
    x = image(1, 3, 9, 31, dtype=dtype)
    expected, _ = SPAN.run(x, packed)
    for pattern in (0x00, 0x5A, 0xFF):
        poison = torch.empty_like(expected)
        poison.view(torch.uint8).fill_(pattern)
        del poison
        assert torch.equal(SPAN.run(x, packed)[0], expected)


@pytest.mark.parametrize("case", [ESPAN, SPAN, FAMILY[3], *NEWER[:12]], ids=str)
def test_nothing_is_left_from_the_previous_call(cpu_path: str, case: Case) -> None:
    """The workspace is kept between calls; here it is full of NaN from the previous call."""
    packed = case.pack()
    largest = Case(70, (3, 3), head_kernel=9, concat_activation=True)
    for size in [(1, 1), (6, 11), (9, 120)]:
        if not fits(case, size):
            continue
        x = image(1, 3, *size)
        expected = case.run(x, packed)
        poisoned, _ = largest.run(torch.full((1, 3, 60, 200), float("nan")))
        assert poisoned.isnan().all()
        for actual, wanted in zip(case.run(x, packed), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize("dataset", ["Set5", pytest.param("Set14", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "weights", ["espan_x4_official.pth", "span_c28_x4_official.pth", "spanv2_x4_official.pth"]
)
def test_photographs(testdata: Path, weights: str, dataset: str) -> None:
    """Each pixel is within a uint8 step of PyTorch's, and the PSNR within 0.001 dB."""
    plain = checkpoints.load(testdata / "weights" / weights)
    layers = layers_of(fold(plain))
    norm = plain.architecture.normalization
    packed = pack_network(layers, scale=4, mean=norm.mean if norm else (0, 0, 0))
    scores = []
    for low, high in photographs(testdata / "testsets" / dataset):
        with torch.no_grad():
            theirs = plain(low.float() / 255).clamp(0, 1).mul(255).round().to(torch.uint8)
        ours, ranges = network(low, packed, layers=describe_network(layers), scale=4)
        assert (ours.int() - theirs.int()).abs().max() <= 1
        assert not ranges[0, 2]
        scores.append([psnr(y[0].permute(1, 2, 0).numpy(), high, border=4) for y in (ours, theirs)])
    ours_mean, theirs_mean = np.mean(scores, axis=0)
    assert abs(ours_mean - theirs_mean) <= 0.001
