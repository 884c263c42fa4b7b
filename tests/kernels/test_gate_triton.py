"""The gate in Triton, compiled ahead of time."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_compiles_ahead_of_time(
    dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels compile to machine code with 16-byte accesses for aligned pointers."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from espan_kernels.triton.gate import BLOCK, gate_backward_kernel, gate_kernel

    kernels: tuple[Any, ...] = (gate_kernel, gate_backward_kernel)
    for kernel in kernels:
        pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
        source = ASTSource(
            fn=kernel,
            signature={name: f"*{dtype}" for name in pointers} | {"n": "i32", "block": "constexpr"},
            constexprs={"block": BLOCK},
            attrs={(i,): [["tt.divisibility", 16]] for i in range(len(pointers) + 1)},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        assert "ld.global.v4.b32" in compiled.asm["ptx"]
        assert "st.global.v4.b32" in compiled.asm["ptx"]
        assert ".local" not in compiled.asm["ptx"]
