"""The upsampling layer in Triton, compiled ahead of time."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from espan_kernels import backends
from tests.kernels.ahead_of_time import compile_for
from tests.kernels.upsample_cases import check

TRITON = backends.available()["triton"]
TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


MORE = (
    ("bf16", "bf16", 48, 3, 80),
    ("fp16", "u8", 64, 4, 80),
    ("fp16", "fp16", 16, 1, 90),
    ("fp16", "fp32", 32, 4, 100),
    ("fp16", "u8", 32, 2, 120),
)


def kernel() -> Any:
    from espan_kernels.triton.upsample import upsample_kernel

    return upsample_kernel


def constants_of(p: int, scale: int) -> dict[str, Any]:
    """The constants for a feature map with ``p`` channels."""
    import triton

    from espan_kernels.packing.feature_maps import padded
    from espan_kernels.triton.conv import BLOCK
    from espan_kernels.triton.upsample import columns_of, stages_of

    near_p = padded(3 * scale * scale)
    depth, near_depth = triton.next_power_of_2(p), triton.next_power_of_2(near_p)
    return {
        "near_p": near_p,
        "near_depth": near_depth,
        "p": p,
        "depth": depth,
        "scale": scale,
        "columns": columns_of(max(depth, near_depth), scale),
        "rows": 16,
        "block": BLOCK,
        "stages": stages_of(depth, near_depth),
    }


@pytest.mark.parametrize(
    ("dtype", "image", "p", "scale", "capability"),
    [
        ("fp16", "u8", 32, 4, 90),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE),
    ],
)
def test_compiles_ahead_of_time(
    dtype: str,
    image: str,
    p: int,
    scale: int,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel compiles to tensor-core instructions, without spills."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = constants_of(p, scale)
    types = {"image_ptr": f"*{image}", "bias_ptr": "*fp32", "flag_ptr": "*i32"}
    compile_for(kernel(), dtype, constants, capability, **types)


def test_compiles_for_maps_one_pixel_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torch.compile, Inductor makes a width of 1 a constant, against `do_not_specialize`."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = constants_of(32, 4) | {"width": 1}
    types = {"image_ptr": "*u8", "bias_ptr": "*fp32", "flag_ptr": "*i32"}
    compile_for(kernel(), "fp16", constants, 90, **types)


@pytest.mark.gpu
@pytest.mark.skipif(not TRITON.available, reason=TRITON.reason)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "scale"), [(1, 1), (26, 2), (32, 4), (48, 3), (64, 4)])
def test_values_on_a_gpu(channels: int, scale: int, dtype: torch.dtype) -> None:
    import espan_kernels.triton.upsample  # noqa: F401

    run = torch.ops.espan_triton.upsample
    for i, shape in enumerate(((1, 1, 1), (2, 1, 7), (1, 17, 29), (2, 70, 120))):
        gain = (1.0, 100.0)[i // 2 % 2]
        check(run, channels, scale, dtype, TYPES[i], shape, device="cuda", gain=gain)
