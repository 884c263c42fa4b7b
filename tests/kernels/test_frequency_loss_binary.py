"""What nvcc has made of the loss's kernels, for every architecture that is built in."""

import re

from tests.kernels.test_library import cuobjdump, needs_cuda_kernels


@needs_cuda_kernels
def test_registers_only() -> None:
    """No local memory, and three blocks of 128 threads fit into the registers of any card."""
    usage = re.findall(r"Function (\S*frequency_loss\S*):\s*(.*)", cuobjdump("-res-usage"))
    assert usage
    for name, line in usage:
        assert "STACK:0 " in line, (name, line)
        assert "LOCAL:0 " in line, (name, line)
        registers = re.search(r"REG:(\d+)", line)
        assert registers is not None
        assert int(registers[1]) <= 168, (name, line)


@needs_cuda_kernels
def test_reads_and_writes_16_bytes_at_once() -> None:
    code = [f for f in cuobjdump("-sass").split("Function : ")[1:] if "frequency_loss_kernel" in f]
    assert code
    for f in code:
        name = f.split()[0]
        assert len(re.findall(r"LDG\.E\S*\.128", f)) >= 2, name
        assert len(re.findall(r"LDS\.128", f)) >= 32, name
        if "Lb1E" in name:  # with the gradient
            assert re.search(r"STG\.E\S*\.128", f), name
