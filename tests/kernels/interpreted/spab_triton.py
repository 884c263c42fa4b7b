"""The block's Triton kernels on the CPU, in Triton's interpreter.

pytest does not collect this file: TRITON_INTERPRET must be set before Triton is imported, so
test_spab_triton.py runs it in a separate process.  The interpreter has no bfloat16.
"""

import pytest
import torch
from torch import Tensor

import espan_kernels.triton.spab  # noqa: F401  (defines torch.ops.espan_triton)
from espan_kernels import pack_spab
from espan_kernels.triton.conv import BLOCK
from tests.kernels.spab_cases import check

ops = torch.ops.espan_triton
F16 = torch.float16


def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
    return ops.spab(x, packed, channels, convs, True)


@pytest.mark.parametrize(
    ("channels", "convs"), [(1, 2), (16, 3), (26, 2), (28, 3), (36, 2), (48, 3), (64, 2)]
)
def test_channels(channels: int, convs: int) -> None:
    check(run, channels, convs, F16, (2, 3, 5))


def test_sizes() -> None:
    """One pixel, one row, one column; below, at and above a program's share of the pixels."""
    for shape in ((1, 1, 1), (1, 1, 7), (2, 9, 1), (1, 4, BLOCK), (1, 5, BLOCK + 6)):
        check(run, 28, 3, F16, shape)


def test_without_activation() -> None:
    packed = pack_spab([torch.randn(20, 20, 3, 3)] * 2, [torch.randn(20)] * 2, F16)
    x = torch.randn(1, 5, 4, 32).half()
    y, activation = ops.spab(x, packed, 20, 2, False)
    assert activation.shape == (0,)
    assert torch.equal(y, run(x, packed, 20, 2)[0])


def test_memory_outside_is_not_accessed() -> None:
    """Runs the kernel itself in the middle of buffers of NaN."""
    from espan_kernels.triton.conv import conv

    p = 32
    weight, bias = torch.randn(9 * p * p).half() / 17, torch.randn(p)
    x = torch.randn(1, 3, 5, p).half()
    expected = conv(x, weight, bias, x)
    margin = 8 * p
    buffers = []
    for size in (x.numel(), weight.numel(), bias.numel()):
        dtype = torch.float32 if size == p else F16
        buffers.append(torch.full((size + 2 * margin,), float("nan"), dtype=dtype))
    inner = [b[margin:-margin] for b in buffers]
    for view, values in zip(inner, (x, weight, bias), strict=True):
        view.copy_(values.flatten())
    found = conv(inner[0].view(1, 3, 5, p), inner[1], inner[2], inner[0].view(1, 3, 5, p))
    assert torch.equal(found, expected)

    from espan_kernels.triton.conv import conv_kernel

    y = torch.full((x.numel() + 2 * margin,), float("nan"), dtype=F16)
    conv_kernel[(1, 1)](
        x,
        weight,
        bias,
        x,
        y[margin:],
        3,
        5,
        1,
        p=p,
        depth=32,
        columns=32,
        gated=True,
        rows=4,
        block=BLOCK,
        stages=1,
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
