"""The CPU path amx: the error of a layer in bf16 products is within a bound for all inputs.

With u = 2^-24, every output of a 3x3 convolution of C channels obeys

    |computed - exact|  <=  K u  sum over channels and taps of  |x| |w|

where K is, for three products (fp32 results):

- bf16 has 8 bits.  The high half is off by at most 2^-8 of the value, and the low half, which is
  that difference rounded, by 2^-9 of at most 2^-8: both halves are within 2^-17 = 128 u.  This
  applies to the input and to the weight, 256 u in all.
- The product of the two low halves is omitted: 2^-8 2^-8 = 256 u.
- Products of bf16 are exact in fp32; sums are rounded: 3 * 9 C products and the initial value.

So K = 512 + 27 C + 1, plus 1 for products of these errors.  For one product (bf16) it is
2 * 2^16 + 2^8 + 9 C + 2.  Values below about 2^-110, which lose digits, are excluded.

The layer is the last convolution of the network.  The image reaches it through a head that copies
its colours, in both halves, and a 1x1 that copies the head.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from espan import checkpoints
from espan.evaluation.metrics import psnr
from espan.fused import FusedNetwork
from espan_kernels import _library
from tests.kernels.network_cases import ESPAN, FAMILY, NEWER, SPAN, Case, image, photographs
from tests.kernels.test_winograd_cpu import layer
from tests.kernels.winograd_bound import inputs
from tests.tolerance import assert_accurate

UNIT = 2.0**-24
DTYPES = [None, torch.bfloat16]  # three products of halves, or one


def has_amx() -> bool:
    if _library.compiled is None:
        return False
    try:
        _library.compiled.select_cpu_path("amx")
    except ValueError:
        return False
    _library.compiled.select_cpu_path("auto")
    return True


pytestmark = pytest.mark.skipif(not has_amx(), reason="this machine cannot run the CPU path amx")


@pytest.fixture(autouse=True)
def _amx() -> Iterator[None]:
    assert _library.compiled is not None
    _library.compiled.select_cpu_path("amx")
    yield
    _library.compiled.select_cpu_path("auto")


def factor(channels: int, dtype: torch.dtype | None) -> int:
    """K."""
    if dtype is None:
        return 512 + 27 * channels + 2
    return 2 * 2**16 + 2**8 + 9 * channels + 2


def near_ties(*size: int) -> Tensor:
    """Values just below halfway between two bf16 values: the error of both halves is largest."""
    generator = torch.Generator().manual_seed(sum(size))
    exponents = torch.randint(-3, 4, size, generator=generator)
    return torch.ldexp(torch.full(size, 1 + 2**-8 - 2**-17 - 2**-20), exponents)


KINDS = ["normal", "one side", "of all magnitudes", "checkerboard", "one pixel", "near ties"]


SHAPES = [(3, 3), (16, 12), (28, 27), (32, 48), (48, 48), (52, 27), (64, 75)]
LAYERS = [(c, o, d) for c, o in SHAPES for d in DTYPES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "outputs", "dtype"), LAYERS, ids=str)
def test_layer(channels: int, outputs: int, kind: str, dtype: torch.dtype | None) -> None:
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    if kind == "near ties":
        weight = near_ties(*weight.shape)
    for size in [(1, 1), (4, 4), (5, 9), (6, 130)]:
        x = near_ties(2, 3, *size) if kind == "near ties" else inputs(kind, 2, 3, *size)
        wide = x[:, torch.arange(channels) % 3].double()
        exact = F.conv2d(wide, weight.double(), padding=1)
        sums = F.conv2d(wide.abs(), weight.double().abs(), padding=1)
        error = (layer(x, weight, torch.zeros(outputs), dtype) - exact).abs()
        bound = factor(channels, dtype) * UNIT * sums
        assert (error <= bound).all(), (error / bound).max()


def test_the_bound_is_tight() -> None:
    """Near ties, the omitted products are half of the error allowed for three products."""
    x, weight = near_ties(1, 3, 9, 9), near_ties(12, 3, 3, 3)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error = (layer(x, weight, torch.zeros(12), None) - exact).abs()
    assert (error >= 0.35 * factor(3, None) * UNIT * exact).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias(dtype: torch.dtype | None) -> None:
    bias = torch.randn(12)
    y = layer(torch.zeros(1, 3, 5, 6), torch.zeros(12, 20, 3, 3), bias, dtype)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))


@pytest.mark.parametrize("case", FAMILY + NEWER, ids=str)
def test_bfloat16_family(case: Case) -> None:
    """Sums are in fp32, so the error is within the rule for bf16, which rounds every result."""
    packed = case.pack(torch.bfloat16)
    smallest = case.architecture.unshuffle
    for size in [(smallest, smallest), (6, 11), (5, 70)]:
        x = image(2, 3, *size)
        y, ranges = case.run(x, packed)
        assert_accurate(y, partial(case.reference, x), dtype=torch.bfloat16, share=2**-8)
        assert torch.equal(ranges[:, 0], y.amin((1, 2, 3)))
        assert torch.equal(ranges[:, 1], y.amax((1, 2, 3)))


@pytest.mark.parametrize("case", [ESPAN, SPAN], ids=str)
def test_bfloat16_uint8_results_are_the_rounded_floats(case: Case) -> None:
    packed = case.pack(torch.bfloat16)
    x = image(2, 3, 9, 70, dtype=torch.uint8)
    y, ranges = case.run(x, packed)
    wide, wide_ranges = case.run(x.float() / 255, packed)
    assert torch.equal(y, wide.clamp(0, 1).mul(255).round().to(torch.uint8))
    assert torch.equal(ranges, wide_ranges)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_part_equals_the_same_part_of_the_whole(dtype: torch.dtype | None) -> None:
    """The order of a pixel's sums does not depend on its position.

    Any part of the image gives the same bits as the whole, except near its border: one pixel for
    each 3x3 layer.
    """
    case = Case(30, (3, 2), head_kernel=5, scale=2)
    packed = case.pack(dtype)
    x = image(1, 3, 40, 90)
    whole, _ = case.run(x, packed)
    reach = 2 + 5 + 1 + 1
    for top, left in [(1, 3), (2, 17), (7, 31), (5, 50)]:
        part, _ = case.run(x[:, :, top : top + 30, left : left + 36], packed)
        inner = part[:, :, 2 * reach : -2 * reach, 2 * reach : -2 * reach]
        y, x0 = 2 * (top + reach), 2 * (left + reach)
        assert torch.equal(inner, whole[:, :, y : y + inner.shape[2], x0 : x0 + inner.shape[3]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(75, 93), (41, 34), (131, 17), (50, 129)])
def test_tasks_of_different_rows(
    size: tuple[int, int], dtype: torch.dtype | None, threads: None
) -> None:
    """Rows are the same for tasks of 9, 5, 16 and 6 rows, which layers begin at different rows.

    A part of an image begins at any row and has tasks of other sizes.  Both images of a batch are
    checked.
    """
    case = Case(20, (3, 2), head_kernel=5, scale=3, concat_activation=True)
    packed, reach = case.pack(dtype), 2 + 5 + 1 + 1
    x = image(2, 3, *size, dtype=torch.uint8)
    torch.set_num_threads(1)
    whole, ranges = case.run(x, packed)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        again, ranges_again = case.run(x, packed)
        assert torch.equal(again, whole)
        assert torch.equal(ranges_again, ranges)
    for top in range(0, size[0] - 2 * reach, 7):
        part, _ = case.run(x[:, :, top : top + 2 * reach + 8], packed)
        first = 0 if top == 0 else reach
        end = min(8 + reach, size[0] - top)
        assert torch.equal(
            part[:, :, 3 * first : 3 * end], whole[:, :, 3 * (top + first) : 3 * (top + end)]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strips_may_begin_at_any_pixel(dtype: torch.dtype | None, threads: None) -> None:
    """Any part is the same for 3461 columns in three strips, which do not begin at multiples of 4.

    61 rows with 320 bytes per pixel take 68 MB, and the limit is 32 MB: strips begin at columns
    1153 and 2307.
    """
    case = Case(70, (2,), head_kernel=3, scale=1)
    packed, reach, width = case.pack(dtype), 1 + 2 + 1 + 1, 3461
    x = image(2, 3, 5, width)
    torch.set_num_threads(1)
    whole, ranges = case.run(x, packed)
    torch.set_num_threads(3)
    again, ranges_again = case.run(x, packed)
    assert torch.equal(again, whole)
    assert torch.equal(ranges_again, ranges)
    for start in range(0, width - 2 * reach, 87):
        part, _ = case.run(x[..., start : start + 87 + 2 * reach], packed)
        first = 0 if start == 0 else reach
        end = min(87 + reach, width - start)
        assert torch.equal(part[..., first:end], whole[..., start + first : start + end])


def test_flushing_subnormals_does_not_affect_other_code() -> None:
    """The op flushes them to zero, but no thread of the pool keeps that mode afterwards."""
    ESPAN.run(image(1, 3, 64, 64), ESPAN.pack())
    tiny = torch.full((1 << 20,), 2.0**-130)
    # Compare bits: in a thread that kept the mode, all of them would equal zero.
    assert ((tiny * 0.5).view(torch.int32) == 2 ** (149 - 131)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [16, 20, 48])
def test_uninitialised_memory_has_no_effect(channels: int, dtype: torch.dtype | None) -> None:
    """A chunk may reach beyond its row, with zero weights: no NaN may be left there."""
    case = Case(channels, (3, 2), scale=2)
    packed = case.pack(dtype)
    sizes = [(1, 1), (5, 16), (9, 31), (13, 64)]
    expected = [case.run(image(1, 3, *size), packed)[0] for size in sizes]
    filling, fill = Case(64, (3, 3), scale=1), torch.full((1, 3, 40, 90), torch.nan)
    weights = filling.pack(dtype)
    for size, y in zip(sizes, expected, strict=True):
        assert y.isfinite().all()
        filling.run(fill, weights)
        assert torch.equal(case.run(image(1, 3, *size), packed)[0], y)


def test_weights_packed_for_another_path() -> None:
    """Tiles and pairs run on their own path only; fp32 Winograd weights run on amx as well."""
    assert _library.compiled is not None
    x = image(1, 3, 9, 14)
    tiles = [ESPAN.pack(dtype) for dtype in DTYPES]
    _library.compiled.select_cpu_path("avx512")
    rows = ESPAN.pack()
    expected, _ = ESPAN.run(x, rows)
    for packed in tiles:
        with pytest.raises(RuntimeError, match="the CPU path amx, but the path in use is avx512"):
            ESPAN.run(x, packed)
    pairs = ESPAN.pack(torch.bfloat16)
    _library.compiled.select_cpu_path("amx")
    with pytest.raises(RuntimeError, match="the CPU path avx512, but the path in use is amx"):
        ESPAN.run(x, pairs)
    assert torch.equal(ESPAN.run(x, rows)[0], expected)
    assert not torch.equal(ESPAN.run(x, tiles[0])[0], expected)


def test_bad_sizes_of_tiles() -> None:
    packed = ESPAN.pack()
    with pytest.raises(RuntimeError, match=r"packed has .* must have \d+ in bfloat16 for the"):
        ESPAN.run(image(1, 3, 4, 4), packed[:-32])


def test_bfloat16_is_used_only_on_request(make_network) -> None:
    """With the same weights, the default is fp32; bf16 is used only if requested."""
    plain = make_network(checkpoints.load().architecture)
    x = torch.rand(1, 3, 20, 30)
    wide = FusedNetwork(plain, device="cpu")(x)
    narrow = FusedNetwork(plain, device="cpu", dtype=torch.bfloat16)(x)
    exact = plain.double()(x.double())
    assert wide.dtype == torch.float32
    assert narrow.dtype == torch.bfloat16
    largest = exact.abs().max()
    assert (wide - exact).abs().max() < 2**-14 * largest
    assert 2**-12 * largest < (narrow - exact).abs().max() < 2**-5 * largest


@pytest.mark.parametrize("weights", ["espan_x4_official.pth", "span_c28_x4_official.pth"])
def test_photographs_in_bfloat16(testdata: Path, weights: str) -> None:
    """Within 0.01 dB of PyTorch's fp32 on Set14."""
    plain = checkpoints.load(testdata / "weights" / weights)
    narrow = FusedNetwork(plain, device="cpu", dtype=torch.bfloat16)
    scores = []
    for low, high in photographs(testdata / "testsets" / "Set14"):
        with torch.no_grad():
            theirs = plain(low.float() / 255).clamp(0, 1).mul(255).round().to(torch.uint8)
            results = (narrow(low), theirs)
        scores.append([psnr(y[0].permute(1, 2, 0).numpy(), high, border=4) for y in results])
    ours_mean, theirs_mean = np.mean(scores, axis=0)
    print(weights, ours_mean, theirs_mean)
    assert abs(ours_mean - theirs_mean) <= 0.01
