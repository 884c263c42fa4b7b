"""The machine code of the loss's kernels, and the size of all kernels in the library."""

import re
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest

from tests.kernels.test_library import (
    cuobjdump,
    library_file,
    machine_code,
    needs_cuda_kernels,
    run,
    tool,
)

pytestmark = needs_cuda_kernels

# Kernels with more than 64 KB of machine code, in KB, and the reason.  The loops must fit into the
# instruction cache, about 128 KB on data-centre GPUs; the rest costs a load from L2.
LARGE = {
    "spab_kernel": (176, "three loops over taps, one step of which is 120 mma, and all epilogues"),
    "tail_kernel": (192, "two convolutions and two 1x1s, each a loop; most on sm_100, 155 KB"),
    "upsample_kernel": (160, "channels known at run time, a loop of 120 mma; most on sm_100"),
    "stream_kernel": (128, "a loop of three rows for each convolution"),
}


@lru_cache
def code_sizes() -> dict[tuple[str, str], int]:
    """Bytes of machine code by architecture and mangled name."""
    sizes = {}
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    with tempfile.TemporaryDirectory() as folder:
        run(tool("cuobjdump"), "-xelf", "all", library_file(), cwd=Path(folder))
        for file in Path(folder).glob("*.cubin"):
            arch = re.findall(r"sm_(\d+)", file.name)[-1]
            sections = run("sh", "-c", 'readelf -S -W "$1" 2>/dev/null', "sh", file)
            for name, size in re.findall(r"\.text\.(\S+)\s+PROGBITS\s+\S+\s+\S+\s+(\S+)", sections):
                sizes[arch, name] = int(size, 16)
    assert sizes
    return sizes


def test_the_loss_fits_the_instruction_cache() -> None:
    found = {k: v for k, v in code_sizes().items() if "frequency_loss" in k[1]}
    assert found
    assert {k: v for k, v in found.items() if v >= 32 << 10} == {}


def test_large_kernels_are_listed() -> None:
    for (arch, name), size in code_sizes().items():
        if size > 64 << 10:
            most, reason = next(v for k, v in LARGE.items() if k in name)
            assert size <= most << 10, (arch, name, size, reason)


def test_no_local_memory() -> None:
    """No local memory anywhere; three blocks of 256 threads have 80 of 65,536 registers each."""
    found = 0
    for part in re.split(r"arch = sm_", cuobjdump("-res-usage"))[1:]:
        arch = part.split()[0]
        for name, line in re.findall(r"Function (\S*frequency_loss\S*):\s*(.*)", part):
            found += 1
            assert "STACK:0 " in line, (arch, name, line)
            assert "LOCAL:0 " in line, (arch, name, line)
            registers = re.search(r"REG:(\d+)", line)
            assert registers is not None
            assert int(registers[1]) <= 80, (arch, name, line)
    assert found


def test_tensor_cores_and_wide_accesses(tmp_path: Path) -> None:
    functions = machine_code(tmp_path, "frequency_loss_kernel")
    code = [f for f in functions if "frequency_loss_kernel" in f.split()[0]]
    assert code
    for f in code:
        name = f.split()[0]
        assert len(re.findall(r"LDG\.E\S*\.128", f)) >= 4, name  # two rows of both images at once
        assert re.search(r"HMMA\.1688\.F32\.TF32", f), name
        if "Lb1E" in name:  # with the gradient
            wide = 128 if "frequency_loss_kernelIf" in name else 64  # four pixels
            assert re.search(rf"STG\.E\S*\.{wide}", f), name
            assert re.search(r"LDSM\S*\.MT88", f), name
