"""Compiling the convolutions in Triton for GPUs that need not be there."""

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
    """A kernel comes to machine code on tensor cores, and keeps all it has in registers.

    But for 8 bytes of stack, which ptxas takes where a third of the registers is in use.

    Pointers are to ``dtype`` but for those in ``types``; what is None in ``constants`` is left out.
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
    ptx: str = compiled.asm["ptx"]
    # LLVM writes it where it narrows the arithmetic of small indices, and ptxas 12.8 to 13.0 encode
    # `add.s16x2 d, a, constant` for sm_90 as an addition of 0: values went to other addresses.
    assert "add.s16x2" not in ptx
    kind = "tcgen05.mma" if capability == 100 else "mma.sync" if capability == 80 else "mma"
    assert kind in ptx


def _usage(cubin: bytes) -> str:
    """Registers, stack and shared memory, by the disassembler that Triton brings."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
