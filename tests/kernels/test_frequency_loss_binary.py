"""What nvcc has made of the loss's kernels."""

import re

from espan_kernels import _library
from tests.kernels.test_library import cuobjdump, needs_cuda_kernels


@needs_cuda_kernels
def test_registers_only() -> None:
    """No local memory anywhere; where shared memory allows three blocks, registers do too."""
    found = 0
    for part in re.split(r"arch = sm_", cuobjdump("-res-usage"))[1:]:
        arch = part.split()[0]
        for name, line in re.findall(r"Function (\S*frequency_loss\S*):\s*(.*)", part):
            found += 1
            assert "STACK:0 " in line, (arch, name, line)
            assert "LOCAL:0 " in line, (arch, name, line)
            registers = re.search(r"REG:(\d+)", line)
            assert registers is not None
            if arch in ("90", "100"):
                assert int(registers[1]) <= 168, (arch, name, line)
    assert found


@needs_cuda_kernels
def test_reads_and_writes_16_bytes_at_once() -> None:
    arch = "sm_" + re.sub(r"\D", "", _library.cuda_archs.split(",")[0])
    functions = cuobjdump("-arch", arch, "-sass").split("Function : ")[1:]
    code = [f for f in functions if "frequency_loss_kernel" in f.split()[0]]
    assert code
    for f in code:
        name = f.split()[0]
        assert len(re.findall(r"LDG\.E\S*\.128", f)) >= 2, name
        assert len(re.findall(r"LDS\.128", f)) >= 32, name
        if "Lb1E" in name:  # with the gradient
            assert re.search(r"STG\.E\S*\.128", f), name
