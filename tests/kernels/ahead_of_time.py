"""Ahead-of-time compilation of the Triton convolutions, which needs no GPU."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any


def compile_for(
    kernel: Any,
    dtype: str,
    constants: dict[str, Any],
    capability: int,
    warps: int = 4,
    **types: str,
) -> None:
    """Check that a kernel compiles to machine code on tensor cores without register spills.

    8 bytes of stack are allowed, which ptxas uses even when a third of the registers is in use.
    GPUs of compute capability 8.6, 8.9 and 12.0 have the least shared memory, 99 KB.

    Pointers are to ``dtype``, except those in ``types``; arguments that are None in ``constants``
    are omitted.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {
        name: "constexpr"
        if name in constants
        else types.get(name, f"*{dtype}" if name.endswith("_ptr") else "i32")
        for name in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": warps})
    usage = _usage(compiled.asm["cubin"])
    assert int(re.findall(r"STACK:(\d+)", usage)[0]) <= 8, usage
    assert "LOCAL:0 " in usage, usage
    least = 99 * 1024
    assert compiled.metadata.shared <= least or capability in (90, 100), compiled.metadata.shared
    ptx: str = compiled.asm["ptx"]
    # LLVM emits it when it narrows the arithmetic of small indices, but ptxas 12.8 to 13.0 encode
    # `add.s16x2 d, a, constant` for sm_90 as an addition of 0: values went to wrong addresses.
    assert "add.s16x2" not in ptx
    kind = {90: "wgmma", 100: "tcgen05.mma"}.get(capability, "mma.sync")
    assert kind in ptx


def _usage(cubin: bytes) -> str:
    """Registers, stack and shared memory, according to Triton's disassembler."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
