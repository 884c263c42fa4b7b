"""The block in Triton, compiled ahead of time."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import backends
from espan_kernels.spab import LEARNED
from tests.kernels.ahead_of_time import compile_for
from tests.kernels.spab_cases import KINDS, Kind, check

TRITON = backends.available()["triton"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


MORE = (
    ("fp16", 32, "silu", 80),
    ("fp16", 64, "sigmoid", 80),
    ("fp16", 64, "tanh", 80),
    ("bf16", 16, "silu", 90),
    ("fp16", 32, "linear", 90),
    ("fp16", 48, "mish", 90),
    ("fp16", 64, "sigmoid", 90),
    ("fp16", 32, "linear", 100),
    ("fp16", 64, "tanh", 100),
    ("bf16", 48, "relu", 120),
)


@pytest.mark.parametrize(
    ("dtype", "p", "function", "capability"),
    [
        ("bf16", 48, "tanh", 80),
        ("fp16", 32, "sigmoid", 90),
        ("fp16", 64, "tanh", 90),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_compiles_ahead_of_time(
    dtype: str,
    p: int,
    function: str,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel compiles to tensor-core instructions, without spills."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton

    from espan_kernels.triton.conv import conv_kernel, options_of

    depth = triton.next_power_of_2(p)
    learned = function in LEARNED
    constants: dict[str, Any] = {"p": p, "depth": depth, "function": function, "rows": 16}
    constants |= options_of(depth, capability // 10, learned)
    if not learned:
        constants |= {"gate_weight_ptr": None, "gate_bias_ptr": None}
    if not learned and function != "sigmoid":
        constants["residual_ptr"] = None
    types = {"bias_ptr": "*fp32", "gate_bias_ptr": "*fp32"}
    compile_for(conv_kernel, dtype, constants, capability, **types)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON.available, reason=TRITON.reason)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 26, 32, 48, 64])
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_values_on_a_gpu(kind: Kind, channels: int, dtype: torch.dtype) -> None:
    import espan_kernels.triton.spab  # noqa: F401

    def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
        return torch.ops.espan_triton.spab(x, packed, channels, convs, True, *kind)

    shapes = ((1, 1, 1), (2, 1, 7), (1, 17, 29), (2, 70, 120))
    for i, shape in enumerate(shapes):
        check(run, channels, 2 + i % 2, dtype, shape, device="cuda", kind=kind)
