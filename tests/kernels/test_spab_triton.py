"""The block in Triton: in the interpreter, and compiled ahead of time."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from espan_kernels import backends
from tests.kernels.ahead_of_time import compile_for
from tests.kernels.spab_cases import check

HERE = Path(__file__).parent
TRITON = backends.available()["triton"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_in_the_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", HERE / "interpreted" / "spab_triton.py"],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


MORE = (
    ("fp16", 32, False, 80),
    ("fp16", 64, True, 80),
    ("bf16", 16, False, 90),
    ("fp16", 64, True, 100),
)


@pytest.mark.parametrize(
    ("dtype", "p", "gated", "capability"),
    [
        ("bf16", 48, True, 80),
        ("fp16", 32, True, 90),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_compiles_ahead_of_time(
    dtype: str,
    p: int,
    capability: int,
    gated: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel compiles to tensor-core instructions, without spills."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton

    from espan_kernels.triton.conv import BLOCK, COLUMNS, conv_kernel

    depth = triton.next_power_of_2(p)
    constants: dict[str, Any] = {
        "p": p,
        "depth": depth,
        "columns": min(depth, COLUMNS),
        "gated": gated,
        "rows": 16,
        "block": BLOCK,
        "stages": 3 if depth <= 32 else 2,
    }
    if not gated:
        constants["residual_ptr"] = None
    compile_for(conv_kernel, dtype, constants, capability, bias_ptr="*fp32")


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON.available, reason=TRITON.reason)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [5, 26, 32, 48, 64])
def test_values_on_a_gpu(channels: int, dtype: torch.dtype) -> None:
    import espan_kernels.triton.spab  # noqa: F401

    def run(x: Tensor, packed: Tensor, channels: int, convs: int) -> tuple[Tensor, Tensor]:
        return torch.ops.espan_triton.spab(x, packed, channels, convs, True)

    for convs in (2, 3):
        for shape in ((1, 1, 1), (2, 1, 7), (1, 17, 29), (2, 70, 120)):
            check(run, channels, convs, dtype, shape, device="cuda")
