"""The block's Triton kernels on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_triton_interpreted.py runs it in a subprocess.  The interpreter has no bfloat16.
"""

import pytest
import torch
from torch import Tensor

import espan_kernels.triton.spab  # noqa: F401  (defines torch.ops.espan_triton)
from espan_kernels import pack_spab
from espan_kernels.spab import LEARNED
from espan_kernels.triton.conv import BLOCK
from tests.kernels.spab_cases import KINDS, SPAN, Kind, Run, check

ops = torch.ops.espan_triton
F16 = torch.float16


def runs(kind: Kind) -> Run:
    """The op for blocks of this kind."""

    def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
        return ops.spab(x, packed, channels, convs, True, *kind)

    return run


run = runs(SPAN)


@pytest.mark.parametrize(
    ("channels", "convs"),
    [
        (1, 2),
        (28, 3),
        (48, 3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((16, 3), (26, 2), (36, 2), (64, 2))
        ),
    ],
)
def test_channels(channels: int, convs: int) -> None:
    check(run, channels, convs, F16, (2, 3, 5))


@pytest.mark.parametrize(
    ("channels", "convs", "shape"),
    [
        (26, 3, (2, 3, 5)),
        pytest.param(32, 2, (1, 2, 70), marks=pytest.mark.slow),
        pytest.param(60, 3, (1, 5, 7), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_kinds(kind: Kind, channels: int, convs: int, shape: tuple[int, int, int]) -> None:
    """One matrix for three rows of taps, and taps apart; with and without padding channels."""
    check(runs(kind), channels, convs, F16, shape, kind=kind)


@pytest.mark.parametrize(
    "kind",
    [SPAN, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != SPAN)],
    ids="-".join,
)
def test_nan_is_passed_on(kind: Kind) -> None:
    """A NaN pixel affects the pixels that the convolutions reach, and no others."""
    weights = [torch.randn(16, 16, 3, 3) / 12 for _ in range(2)]
    gate_conv = (torch.randn(16, 16, 1, 1) / 4, torch.randn(16)) if kind[1] in LEARNED else None
    activation, gate = kind
    packed = pack_spab(
        weights, [torch.randn(16)] * 2, F16, activation=activation, gate=gate, gate_conv=gate_conv
    )
    x = torch.randn(1, 9, 11, 16).half()
    x[0, 4, 5, 3] = float("nan")
    y, _ = runs(kind)(x, packed, 16, 2)
    expected = torch.zeros(9, 11, dtype=torch.bool)
    expected[2:7, 3:8] = True
    assert torch.equal(y[0].isnan().all(dim=2), expected)
    assert torch.equal(y[0].isnan().any(dim=2), expected)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (2, 9, 1),
        (1, 2, BLOCK + 6),
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in ((1, 1, 7), (1, 4, BLOCK), (1, 5, BLOCK + 6))
        ),
    ],
)
def test_sizes(shape: tuple[int, int, int]) -> None:
    """One pixel, one row, one column; below, at and above a program's share of the pixels."""
    check(run, 28, 2, F16, shape)


def test_without_activation() -> None:
    packed = pack_spab([torch.randn(20, 20, 3, 3)] * 2, [torch.randn(20)] * 2, F16)
    x = torch.randn(1, 5, 4, 32).half()
    y, activation = ops.spab(x, packed, 20, 2, False)
    assert activation.shape == (0,)
    assert torch.equal(y, run(x, packed, 20, 2)[0])


@pytest.mark.parametrize("p", [32, 48])
def test_memory_outside_is_not_accessed(p: int) -> None:
    """Runs the kernel itself in the middle of buffers of NaN."""
    from espan_kernels.triton.conv import conv, conv_kernel

    weight, bias = torch.randn(9 * p * p).half() / 17, torch.randn(p)
    gate_weight, gate_bias = torch.randn(p * p).half() / 6, torch.randn(p)
    x = torch.randn(1, 3, 5, p).half()
    expected = conv(x, weight, bias, "tanh", x, (gate_weight, gate_bias))
    assert expected.isfinite().all()
    margin = 8 * p

    def within_nan(t: Tensor) -> Tensor:
        whole = torch.full((t.numel() + 2 * margin,), float("nan"), dtype=t.dtype)
        whole[margin:-margin] = t.flatten()
        return whole[margin:-margin]

    y = torch.full((x.numel() + 2 * margin,), float("nan"), dtype=F16)
    conv_kernel[(1, 1)](
        *(within_nan(t) for t in (x, weight, bias, x, gate_weight, gate_bias)),
        y[margin:],
        3,
        5,
        1,
        p=p,
        depth=64 if p == 48 else 32,
        columns=64 if p == 48 else 32,
        function="tanh",
        rows=4,
        block=BLOCK,
        stages=1,
        apart=p == 48,
    )
    assert torch.equal(y[margin:-margin].view(x.shape), expected)
    assert y.isnan().sum() == 2 * margin


def test_bad_inputs() -> None:
    packed = pack_spab([torch.randn(20, 20, 3, 3)] * 2, [torch.randn(20)] * 2, torch.float32)
    x = torch.randn(1, 5, 4, 32)
    with pytest.raises(RuntimeError, match="packed has dtype float32; it must be float16"):
        ops.spab(x.half(), packed, 20, 2, False)
    with pytest.raises(RuntimeError, match=r"x has shape \[1, 5, 4, 16\]"):
        ops.spab(x[..., :16].contiguous(), packed, 20, 2, False)


def test_float32_runs_the_reference() -> None:
    check(run, 26, 3, torch.float32, (1, 4, 5))
