"""The machine code of the streamed block of 64 channels."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.kernels.spab_cases import KINDS
from tests.kernels.test_spab_machine_code import ROOT, cuobjdump, pytestmark, tool

__all__ = ["pytestmark"]

# Products and their groups: three convolutions of 9 taps and 4 steps of 16 channels, and the four
# steps of a gate with a 1x1 convolution, linear or tanh.
CONVOLUTIONS, GATE = (3 * 36, 3), (4, 1)


def check(code: str) -> None:
    functions = [f for f in code.split("Function : ")[1:] if "spab_wide_kernel" in f.split()[0]]
    assert len(functions) == 2 * len(KINDS)
    for function in functions:
        name = function.split()[0]
        learned = re.search(r"GateKindE[12]E", name) is not None
        products, groups = (a + learned * b for a, b in zip(CONVOLUTIONS, GATE, strict=True))
        counts = {i: function.count(i) for i in ("HGMMA", "WARPGROUP.ARRIVE", "DEPBAR.LE gsb0")}
        assert list(counts.values()) == [products, groups, groups], (name, counts)
        # A third of the weights is in shared memory.
        shared = len(re.findall(r"HGMMA\S+ R\d+, gdesc", function))
        assert shared == 3 * 12 + 4 * learned, name
        assert not re.search(r"\b(LDL|STL)\b", function), name
        assert "UTMALDG.4D" in function
        assert "STSM.16.MT88.4" in function


def test_the_library() -> None:
    """Products of a row are one group, there are no spills, and x is copied as a tensor."""
    check(cuobjdump("9.0", "-sass"))


@pytest.mark.slow
def test_the_compiler_does_not_serialize_products(tmp_path: Path) -> None:
    """It reports this as a message C75xx, and no test of results can see it."""
    source = tmp_path / "wide.cu"
    source.write_text(
        '#include "spab_wide.cuh"\n'
        "using namespace espan::cuda;\n"
        "void* volatile kernel;\n"
        "template <class T> void use() {\n"
        "  for_each_spab_wide<T>([](auto s) { kernel = (void*)spab_wide_kernel<decltype(s)>; });\n"
        "}\n"
        "void use_all() {\n"
        "  use<Float16>();\n"
        "  use<BFloat16>();\n"
        "}\n"
    )
    cubin = tmp_path / "wide.cubin"
    command = [tool("nvcc"), "-cubin", "-O3", "-std=c++17", "-Xptxas=-v", f"-I{ROOT}/csrc/cuda"]
    command += ["-gencode=arch=compute_90a,code=sm_90a", str(source), "-o", str(cubin)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    messages = run.stdout + run.stderr
    assert messages.count("spab_wide_kernel") >= 2 * len(KINDS)
    assert "C75" not in messages, messages
    sass = subprocess.run(
        [tool("cuobjdump"), "-sass", cubin], check=True, capture_output=True, text=True
    )
    check(sass.stdout)
