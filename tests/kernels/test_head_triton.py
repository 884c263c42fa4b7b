"""The head in Triton, compiled ahead of time."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from espan_kernels import backends
from tests.kernels.ahead_of_time import compile_for
from tests.kernels.head_cases import ACTIVATIONS, LAYOUTS, check, image_of

TRITON = backends.available()["triton"]
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


MORE = (
    ("fp16", "u8", 32, 9, False, 80),
    ("fp16", "fp32", 16, 11, False, 90),
    ("bf16", "fp16", 64, 1, False, 100),
)


@pytest.mark.parametrize(
    ("dtype", "image", "p", "kernel", "with_mean", "capability"),
    [
        ("bf16", "bf16", 48, 3, True, 80),
        ("fp16", "u8", 32, 9, True, 90),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_compiles_ahead_of_time(
    dtype: str,
    image: str,
    p: int,
    kernel: int,
    with_mean: bool,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel compiles to tensor-core instructions, without spills."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton

    from espan_kernels.triton.conv import BLOCK
    from espan_kernels.triton.head import WARPS, columns_of, head_kernel

    constants: dict[str, Any] = {
        "kernel": kernel,
        "activation": "silu",
        "p": p,
        "depth": max(16, triton.next_power_of_2(3 * kernel)),
        "columns": columns_of(p, capability // 10),
        "rows": 16,
        "block": BLOCK,
    }
    if not with_mean:
        constants["mean_ptr"] = None
    types = {"image_ptr": f"*{image}", "bias_ptr": "*fp32", "mean_ptr": "*fp32"}
    compile_for(head_kernel, dtype, constants, capability, WARPS, **types)


@pytest.mark.parametrize(
    ("dtype", "image", "p", "unshuffle", "capability"),
    [
        ("fp16", "u8", 48, 4, 90),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("fp16", "fp32", 64, 4, 80),
                ("bf16", "bf16", 64, 2, 80),
                ("fp16", "u8", 48, 4, 100),
                ("bf16", "u8", 32, 2, 120),
            )
        ),
    ],
)
def test_unshuffled_head_compiles_ahead_of_time(
    dtype: str,
    image: str,
    p: int,
    unshuffle: int,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton

    from espan_kernels.triton.conv import BLOCK, COLUMNS
    from espan_kernels.triton.head import WARPS
    from espan_kernels.triton.unshuffle import unshuffled_head_kernel

    constants: dict[str, Any] = {
        "unshuffle": unshuffle,
        "activation": "none",
        "p": p,
        "columns": min(triton.next_power_of_2(p), COLUMNS),
        "rows": 16,
        "block": BLOCK,
    }
    types = {"image_ptr": f"*{image}", "bias_ptr": "*fp32", "mean_ptr": "*fp32"}
    compile_for(unshuffled_head_kernel, dtype, constants, capability, WARPS, **types)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON.available, reason=TRITON.reason)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "kernel"), [(1, 1), (26, 9), (32, 3), (48, 3), (64, 11)])
def test_values_on_a_gpu(channels: int, kernel: int, dtype: torch.dtype) -> None:
    import espan_kernels.triton.head  # noqa: F401

    run = torch.ops.espan_triton.head
    for i, shape in enumerate(((1, 1, 1), (2, 1, 7), (1, 17, 29), (2, 70, 120))):
        image = image_of(shape, TYPES[i], LAYOUTS[i % 3])
        activation = ACTIVATIONS[i % 3]
        options: dict[str, Any] = {"with_mean": i % 2 == 1, "activation": activation}
        check(run, channels, kernel, dtype, image, device="cuda", **options)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON.available, reason=TRITON.reason)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("unshuffle", [2, 4])
@pytest.mark.parametrize("channels", [5, 32, 48, 64])
def test_unshuffled_values_on_a_gpu(channels: int, unshuffle: int, dtype: torch.dtype) -> None:
    import espan_kernels.triton.head  # noqa: F401

    run = torch.ops.espan_triton.head
    for i, shape in enumerate(((1, 4, 4), (2, 5, 7), (1, 30, 29), (2, 140, 241))):
        image = image_of(shape, TYPES[i], LAYOUTS[i % 3])
        options: dict[str, Any] = {"with_mean": i % 2 == 1, "unshuffle": unshuffle}
        check(run, channels, 3, dtype, image, device="cuda", **options)
