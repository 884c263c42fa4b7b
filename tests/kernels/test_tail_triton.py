"""The tail in Triton, compiled ahead of time."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from espan_kernels import backends
from tests.kernels.ahead_of_time import compile_for
from tests.kernels.tail_cases import check

TRITON = backends.available()["triton"]
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


MORE = (
    ("bf16", "bf16", 48, 3, 3, 3, 80),
    ("fp16", "u8", 32, 4, 2, 3, 80),
    ("fp16", "fp16", 32, 4, 2, 3, 90),
    ("fp16", "fp32", 16, 2, 3, 3, 90),
    ("bf16", "fp16", 64, 4, 2, 3, 100),
    ("fp16", "u8", 64, 4, 3, 1, 80),
    ("bf16", "fp16", 32, 4, 3, 1, 90),
    ("fp16", "u8", 48, 2, 3, 1, 100),
)


@pytest.mark.parametrize(
    ("dtype", "image", "p", "scale", "sides", "last_kernel", "capability"),
    [
        ("fp16", "u8", 32, 4, 2, 3, 90),
        ("fp16", "u8", 48, 4, 3, 1, 90),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_compiles_ahead_of_time(
    dtype: str,
    image: str,
    p: int,
    scale: int,
    sides: int,
    last_kernel: int,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernels compile to tensor-core instructions, without spills."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton

    from espan_kernels.triton import upsample
    from espan_kernels.triton.conv import BLOCK, COLUMNS
    from espan_kernels.triton.tail import concat_kernel, stages_of

    depth = triton.next_power_of_2(p)
    sizes: dict[str, Any] = {"p": p, "depth": depth, "rows": 16, "block": BLOCK}
    constants = sizes | {"columns": min(depth, COLUMNS), "stages": stages_of(depth)}
    constants["kernel"] = last_kernel
    if sides == 2:
        constants["activation_ptr"] = None
    compile_for(concat_kernel, dtype, constants, capability, bias_ptr="*fp32")
    constants = sizes | {"scale": scale, "near_ptr": None, "near_p": 0, "near_depth": 0}
    constants["columns"] = upsample.columns_of(depth, scale)
    constants["stages"] = upsample.stages_of(depth, 0)
    types = {"image_ptr": f"*{image}", "bias_ptr": "*fp32", "flag_ptr": "*i32"}
    compile_for(upsample.upsample_kernel, dtype, constants, capability, **types)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON.available, reason=TRITON.reason)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("last_kernel", [1, 3])
@pytest.mark.parametrize(("channels", "scale"), [(1, 1), (26, 2), (32, 4), (48, 3), (64, 4)])
def test_values_on_a_gpu(channels: int, scale: int, last_kernel: int, dtype: torch.dtype) -> None:
    import espan_kernels.triton.tail  # noqa: F401

    run = torch.ops.espan_triton.tail
    for i, shape in enumerate(((1, 1, 1), (2, 1, 7), (1, 17, 29), (2, 70, 120))):
        options = {"gain": (1.0, 100.0)[i // 2 % 2], "last_kernel": last_kernel}
        check(run, channels, scale, 2 + i % 2, dtype, TYPES[i], shape, device="cuda", **options)
