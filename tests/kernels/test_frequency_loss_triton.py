"""The loss in Triton: in the interpreter, and compiled for GPUs that need not be there."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


def test_in_the_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", HERE / "interpreted" / "frequency_loss_triton.py"],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 80), ("fp16", 90), ("fp32", 100)])
def test_compiles_ahead_of_time(
    dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Machine code comes out, in float32 throughout, without local memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from espan_kernels.triton.frequency_loss import SIDE, SUM_BLOCK
    from espan_kernels.triton.frequency_loss import frequency_loss_kernel as tile
    from espan_kernels.triton.frequency_loss import frequency_loss_sum_kernel as total

    images = {f"{name}_ptr": f"*{dtype}" for name in ("sr", "hr", "grad")}
    pointers = {f"{name}_ptr": "*fp32" for name in ("scale", "sums", "loss", "terms")}
    constants = {"squared": True, "gradient": True, "side": SIDE, "block": SUM_BLOCK}
    weights = {"pixel_weight", "hf_weight", "dct_weight"}
    for kernel in (tile, total):
        signature = {
            name: (images | pointers).get(name)
            or ("constexpr" if name in constants else "fp32" if name in weights else "i32")
            for name in kernel.arg_names
        }
        constexprs = {name: value for name, value in constants.items() if name in signature}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        assert ".local" not in compiled.asm["ptx"]
        assert "tf32" not in compiled.asm["ptx"]
