"""The block's CPU kernels: values by every path, at every kind of size, and what they touch."""

import itertools

import pytest
import torch
from torch import Tensor

from espan_kernels import _library, pack_spab, spab
from tests.kernels import cpu_cases, winograd_bound
from tests.kernels.cpu_cases import FLOATS, NAN, SIZES
from tests.kernels.spab_cases import check

pytestmark = pytest.mark.skipif(_library.compiled is None, reason=_library.why_not_compiled)

CHANNELS = (1, 4, 5, 15, 16, 17, 26, 28, 32, 33, 48, 52, 64)


def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
    return spab(x, packed, channels, convs, with_activation=True)


def example(
    *shape: int, channels: int = 20, convs: int = 3, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    weights = torch.randn(convs, channels, channels, 3, 3, generator=generator) / channels**0.5 / 3
    biases = torch.randn(convs, channels, generator=generator)
    p = -(-channels // 16) * 16
    x = torch.randn(*shape, p, generator=generator).to(dtype)
    x[..., channels:] = 0
    return x, pack_spab(weights.unbind(), biases.unbind(), dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(cpu_path: str, channels: int, dtype: torch.dtype) -> None:
    for convs in (2, 3):
        check(run, channels, convs, dtype, (2, 5, 9), winograd=True)


@pytest.mark.parametrize("dtype", FLOATS)
def test_sizes(cpu_path: str, dtype: torch.dtype) -> None:
    for i, size in enumerate(SIZES):
        check(run, (28, 5)[i % 2], 2 + i // 2 % 2, dtype, (1, *size), winograd=True)


@pytest.mark.slow
@pytest.mark.parametrize("convs", [2, 3])
@pytest.mark.parametrize("channels", CHANNELS)
def test_all_sizes(cpu_path: str, channels: int, convs: int) -> None:
    sizes = [*itertools.product(range(1, 11), repeat=2), *SIZES, (40, 230), (131, 67)]
    for i, size in enumerate(sizes):
        dtype = FLOATS[i % 3]
        check(run, channels, convs, dtype, (1, *size), winograd=True)


@pytest.mark.parametrize("kind", winograd_bound.KINDS)
@pytest.mark.parametrize("channels", [3, 16, 28, 48, 64])
def test_a_layer_keeps_the_bound(cpu_path: str, channels: int, kind: str) -> None:
    """Seen through SiLU, whose slope is 1.1 at most: the first activation."""
    generator = torch.Generator().manual_seed(channels)
    weight = torch.randn(channels, channels, 3, 3, generator=generator)
    packed = pack_spab([weight] * 2, [torch.zeros(channels)] * 2, torch.float32)
    p = -(-channels // 16) * 16
    for size in [(1, 1), (4, 4), (5, 9), (6, 130)]:
        x = winograd_bound.inputs(kind, 2, channels, *size)
        features = torch.zeros(2, *size, p)
        features[..., :channels] = x.permute(0, 2, 3, 1)
        _, activation = run(features, packed, channels, 2)
        o = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
        exact = torch.nn.functional.silu(o)
        error = (activation[..., :channels].permute(0, 3, 1, 2) - exact).abs()
        allowed = 1.1 * winograd_bound.bound(x, weight) + 4 * winograd_bound.UNIT * exact.abs()
        assert (error <= allowed).all(), (error / allowed).max()


def test_silu_and_gate_within_3_ulp(cpu_path: str) -> None:
    """With weights of zero an activation is one of the bias alone.

    exp and tanh have 2 ulp (test_cpu_vectors.py); a product or quotient adds to that.
    """
    values = torch.cat([10.0 ** torch.linspace(-30, 1.9, 1600), torch.linspace(1e-3, 87, 1600)])
    values = torch.cat([values, -values]).view(-1, 64)
    zeros = torch.zeros(64, 64, 3, 3)
    x = torch.zeros(1, 1, 1, 64)
    for o in values.unbind():
        y, activation = run(x, pack_spab([zeros] * 2, [o, o], torch.float32), 64, 2)
        wide = o.double()
        for actual, exact in (
            (activation, wide * torch.sigmoid(wide)),
            (y, wide * 0.5 * torch.tanh(0.5 * wide)),
        ):
            normal = exact.abs() >= torch.finfo(torch.float32).tiny
            rounded = exact.float()
            ulp = torch.nextafter(rounded.abs(), torch.tensor(torch.inf)) - rounded.abs()
            error = ((actual.flatten().double() - exact).abs() / ulp)[normal]
            assert (error <= 3).all(), (error.max(), o[normal][error.argmax()])


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_the_channels_are_read(cpu_path: str, dtype: torch.dtype) -> None:
    """Not what pads them, and nothing around; a view may begin anywhere."""
    x, packed = example(2, 5, 7, dtype=dtype)
    expected = run(x, packed, 20, 3)
    assert all((t[..., 20:] == 0).all() for t in expected)
    poisoned = cpu_cases.in_buffer(x)
    poisoned[..., 20:] = NAN
    cpu_cases.assert_same(run(poisoned, packed, 20, 3), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nothing_is_left_from_the_call_before(cpu_path: str, dtype: torch.dtype) -> None:
    for size in [(1, 1), (6, 11), (9, 120)]:
        x, packed = example(1, *size, dtype=dtype)
        expected = run(x, packed, 20, 3)
        cpu_cases.poison_workspace()
        cpu_cases.assert_same(run(x, packed, 20, 3), expected)


def test_what_pads_the_channels_is_zero_beside_infinities(cpu_path: str) -> None:
    x, packed = example(1, 6, 6)
    x[0, 3, 3, 7] = float("inf")
    for t in run(x, packed, 20, 3):
        assert not t.isfinite().all()
        assert (t[..., 20:] == 0).all()


def test_output_is_written_whole(cpu_path: str) -> None:
    x, packed = example(1, 9, 31)
    cpu_cases.check_written_whole(lambda: run(x, packed, 20, 3))


def test_result_does_not_depend_on_threads(cpu_path: str, threads: None) -> None:
    x, packed = example(2, 70, 90)
    cpu_cases.check_threads(lambda: run(x, packed, 20, 3))


def test_result_does_not_depend_on_strips(cpu_path: str) -> None:
    """Part of an image wide enough for several strips equals that part alone, to the last bit.

    The part begins at a tile; compared is what its own border does not reach, a tile a layer.
    """
    width, reach = 12000, 12  # some 30 rows of 256 bytes a pixel: 92 MB, of which 56 may be kept
    x, packed = example(1, 5, width, channels=64)
    whole = run(x, packed, 64, 3)
    for start in range(0, width - 400, 400):
        part = run(x[:, :, start : start + 400].contiguous(), packed, 64, 3)
        left = 0 if start == 0 else reach
        cpu_cases.assert_same(
            [t[:, :, start + left : start + 400 - reach] for t in whole],
            [t[:, :, left : 400 - reach] for t in part],
        )


def test_many_python_threads() -> None:
    runs = []
    for i in range(8):
        x, packed = example(1, 5 + 9 * i, 60 - 6 * i, channels=10 + 7 * i, convs=2 + i % 2)
        runs.append(lambda x=x, packed=packed, i=i: run(x, packed, 10 + 7 * i, 2 + i % 2))
    cpu_cases.check_python_threads(runs)
