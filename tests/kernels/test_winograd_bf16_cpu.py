"""`network` in bf16 on the CPU path avx512: Winograd with products of bf16, by avx512_bf16."""

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
from espan_kernels import _library, backends
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
from tests.kernels.test_network_cpu import SIZES, fits
from tests.kernels.test_winograd_cpu import layer
from tests.kernels.winograd_bound import K_BFLOAT16, KINDS, bound, inputs
from tests.tolerance import WINOGRAD_BFLOAT16, assert_accurate

BF16 = torch.bfloat16


def has_products() -> bool:
    if _library.compiled is None:
        return False
    try:
        _library.compiled.select_cpu_path("avx512")
    except ValueError:
        return False
    found = backends.cpu_has_bfloat16()
    _library.compiled.select_cpu_path("auto")
    return found


pytestmark = pytest.mark.skipif(not has_products(), reason="this machine has no avx512_bf16")


@pytest.fixture(autouse=True)
def _avx512() -> Iterator[None]:
    assert _library.compiled is not None
    _library.compiled.select_cpu_path("avx512")
    yield
    _library.compiled.select_cpu_path("auto")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "outputs"), [(3, 3), (16, 12), (27, 27), (48, 48), (64, 75)])
def test_layer(channels: int, outputs: int, kind: str) -> None:
    """The error of a layer is within the bound for all inputs."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    bias = torch.zeros(outputs)
    for size in [(1, 1), (4, 4), (5, 9), (6, 130)]:
        x = inputs(kind, 2, 3, *size)
        repeated = x[:, torch.arange(channels) % 3]
        exact = F.conv2d(repeated.double(), weight.double(), padding=1)
        error = (layer(x, weight, bias, BF16) - exact).abs()
        allowed = bound(repeated, weight, K_BFLOAT16)
        assert (error <= allowed).all(), (error / allowed).max()


def test_bias() -> None:
    bias = torch.randn(12)
    y = layer(torch.zeros(1, 3, 5, 6), torch.zeros(12, 20, 3, 3), bias, BF16)
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))


def assert_close(case: Case, x: Tensor, packed: Tensor) -> None:
    y, ranges = case.run(x, packed)
    reference = partial(case.reference, x)
    assert_accurate(y, reference, dtype=BF16, **WINOGRAD_BFLOAT16)
    assert torch.equal(ranges[:, 0], y.amin((1, 2, 3)))
    assert torch.equal(ranges[:, 1], y.amax((1, 2, 3)))
    assert not ranges[:, 2].any()


@pytest.mark.parametrize("case", FAMILY + NEWER, ids=str)
def test_family(case: Case) -> None:
    packed = case.pack(BF16)
    smallest = case.architecture.unshuffle
    for size in [(smallest, smallest), (6, 11), (5, 70)]:
        assert_close(case, image(2, 3, *size), packed)


@pytest.mark.parametrize("case", [FAMILY[3], NEWER[1], NEWER[8]], ids=str)
def test_sizes(case: Case) -> None:
    packed = case.pack(BF16)
    for size in SIZES:
        if fits(case, size):
            assert_close(case, image(1, 3, *size), packed)


@pytest.mark.parametrize("case", [ESPAN, SPAN, FAMILY[3], NEWER[0], NEWER[6]], ids=str)
def test_uint8_results_are_the_rounded_floats(case: Case) -> None:
    packed = case.pack(BF16)
    x = image(2, 3, 9, 70, dtype=torch.uint8)
    y, ranges = case.run(x, packed)
    wide, wide_ranges = case.run(x.float() / 255, packed)
    assert torch.equal(y, wide.clamp(0, 1).mul(255).round().to(torch.uint8))
    assert torch.equal(ranges, wide_ranges)


@pytest.mark.parametrize("case", [ESPAN, NEWER[0], NEWER[8]], ids=str)
def test_views(case: Case) -> None:
    """The input may have any strides; the NaN between its pixels are not read."""
    packed, x = case.pack(BF16), image(2, 3, 7, 10)
    around = torch.full((2, 9, 24, 5), torch.nan)
    inside = around[:, 1:8, 2:22:2, 1:4].permute(0, 3, 1, 2)
    inside.copy_(x)
    assert torch.equal(case.run(inside, packed)[0], case.run(x, packed)[0])


@pytest.mark.parametrize("case", [Case(16, (3, 2), head_kernel=5), NEWER[1], NEWER[8]], ids=str)
def test_result_does_not_depend_on_threads(threads: None, case: Case) -> None:
    packed, x = case.pack(BF16), image(1, 3, 70, 90)
    torch.set_num_threads(1)
    expected = case.run(x, packed)
    for count in (2, 3, 7):
        torch.set_num_threads(count)
        for actual, wanted in zip(case.run(x, packed), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("case", "height", "width", "reach"),
    [
        (Case(70, (2,), head_kernel=3, scale=1), 5, 3900, 4 * 6),
        (Case(70, (2,), scale=1, more=(*SPANF3, ("unshuffle", 2))), 10, 9700, 8 * 6),
        (Case(60, (3,), scale=1, more=SPANV2), 5, 7900, 4 * 6),
    ],
    ids=str,
)
def test_tiles_and_strips(case: Case, height: int, width: int, reach: int) -> None:
    """Part of an image of several strips equals that part alone, as in test_network_cpu.py."""
    packed = case.pack(BF16)
    x = image(1, 3, height, width)
    whole, _ = case.run(x, packed)
    for start in range(0, width - 200, 312):
        part, _ = case.run(x[..., start : start + 200], packed)
        left = 0 if start == 0 else reach
        assert torch.equal(
            whole[..., start + left : start + 200 - reach], part[..., left : 200 - reach]
        )


@pytest.mark.parametrize("case", [ESPAN, SPAN, FAMILY[3], *NEWER[:12]], ids=str)
def test_nothing_is_left_from_the_previous_call(case: Case) -> None:
    """The workspace is kept between calls; here it is full of NaN from the previous call."""
    packed = case.pack(BF16)
    largest = Case(70, (3, 3), head_kernel=9, concat_activation=True)
    for size in [(1, 1), (6, 11), (9, 120)]:
        if not fits(case, size):
            continue
        x = image(1, 3, *size)
        expected = case.run(x, packed)
        poisoned, _ = largest.run(torch.full((1, 3, 60, 200), torch.nan))
        assert poisoned.isnan().all()
        for actual, wanted in zip(case.run(x, packed), expected, strict=True):
            assert torch.equal(actual, wanted)


def test_non_finite_values_are_reported() -> None:
    case = Case(16, (2,), scale=2)
    packed = case.pack(BF16)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = image(3, 3, 30, 30)
        x[1, 2, 17, 3] = bad
        _, ranges = case.run(x, packed)
        assert ranges[:, 2].tolist() == [0, 1, 0]


def test_weights_for_another_path() -> None:
    assert _library.compiled is not None
    x, pairs = image(1, 3, 9, 14), ESPAN.pack(BF16)
    for path in ("portable", "avx2"):
        _library.compiled.select_cpu_path(path)
        with pytest.raises(RuntimeError, match=f"path avx512, but the path in use is {path}"):
            ESPAN.run(x, pairs)
        with pytest.raises(ValueError, match="it must be float32 or, on the CPU path amx and on"):
            ESPAN.pack(BF16)
    _library.compiled.select_cpu_path("avx512")
    with pytest.raises(RuntimeError, match=r"must have \d+ in bfloat16 for the CPU path avx512"):
        ESPAN.run(x, pairs[:-32])


def test_it_is_used_only_on_request(make_network) -> None:
    plain = make_network(checkpoints.load().architecture)
    x = torch.rand(1, 3, 20, 30)
    wide = FusedNetwork(plain, device="cpu")(x)
    narrow = FusedNetwork(plain, device="cpu", dtype=BF16)(x)
    exact = plain.double()(x.double())
    assert (wide.dtype, narrow.dtype) == (torch.float32, BF16)
    largest = exact.abs().max()
    assert (wide - exact).abs().max() < 2**-16 * largest
    assert 2**-12 * largest < (narrow - exact).abs().max() < 2**-4 * largest


@pytest.mark.parametrize(
    "weights", ["espan_x4_official.pth", "span_c28_x4_official.pth", "spanv2_x4_official.pth"]
)
def test_photographs(testdata: Path, weights: str) -> None:
    """Within 0.02 dB of PyTorch's fp32 on Set14."""
    plain = checkpoints.load(testdata / "weights" / weights)
    narrow = FusedNetwork(plain, device="cpu", dtype=BF16)
    scores = []
    for low, high in photographs(testdata / "testsets" / "Set14"):
        with torch.no_grad():
            theirs = plain(low.float() / 255).clamp(0, 1).mul(255).round().to(torch.uint8)
            results = (narrow(low), theirs)
        scores.append([psnr(y[0].permute(1, 2, 0).numpy(), high, border=4) for y in results])
    ours_mean, theirs_mean = np.mean(scores, axis=0)
    print(weights, ours_mean, theirs_mean)
    assert abs(ours_mean - theirs_mean) <= 0.02
