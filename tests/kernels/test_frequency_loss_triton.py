"""The loss in Triton, compiled ahead of time."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@pytest.mark.parametrize(
    ("dtype", "capability"),
    [
        ("fp16", 90),
        pytest.param("bf16", 80, marks=pytest.mark.slow),
        pytest.param("fp32", 100, marks=pytest.mark.slow),
    ],
)
def test_compiles_ahead_of_time(
    dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels compile to machine code without local memory."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from espan_kernels.triton import frequency_loss as kernels

    types = {f"{name}_ptr": f"*{dtype}" for name in ("sr", "hr", "grad")}
    types |= {f"{name}_weight": "fp32" for name in ("pixel", "hf", "dct")} | {"signs_ptr": "*i8"}
    constants = {"squared": True, "rows": kernels.ROWS, "block": kernels.BLOCK}
    for kernel in (kernels.high_pass_kernel, kernels.dct_kernel, kernels.sum_kernel):
        signature = {
            name: "constexpr"
            if name in constants
            else types.get(name, "*fp32" if name.endswith("_ptr") else "i32")
            for name in kernel.arg_names
        }
        constexprs = {name: value for name, value in constants.items() if name in signature}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert compiled.asm["cubin"]
        assert ".local" not in compiled.asm["ptx"]


def test_no_argument_is_a_symbolic_float() -> None:
    """For symbolic sizes, Inductor would pass a float computed from them as an integer."""
    import espan_kernels.triton.frequency_loss  # noqa: F401

    arguments: list[tuple[str, Any]] = []

    def take(graph: torch.fx.GraphModule, inputs: list[Any]) -> None:
        nodes = graph.graph.nodes
        for node in (n for n in nodes if n.target is triton_kernel_wrapper_functional):
            arguments.extend(node.kwargs["kwargs"].items())
        raise RuntimeError("taken")

    def run(sr: Tensor, hr: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        weights = (1.0, 1.0, 0.001, True)
        return torch.ops.espan_triton.frequency_loss_gradient(sr, hr, scale, *weights)

    image = torch.zeros(1, 3, 16, 24)
    compiled = torch.compile(run, backend=aot_autograd(fw_compiler=take), dynamic=True)
    with pytest.raises(BackendCompilerFailed, match="taken"):
        compiled(image, image.clone(), torch.ones(()))
    kinds = [(name, type(getattr(a, "meta", {}).get("val", a))) for name, a in arguments]
    assert ("height", torch.SymInt) in kinds
    assert [name for name, kind in kinds if kind is torch.SymFloat] == []
