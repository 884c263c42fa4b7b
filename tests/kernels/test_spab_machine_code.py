"""What the compiler made of spab, head and tail: tensor cores, and nothing in local memory."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from espan_kernels import _library

ARCHS = ("8.0", "8.6", "8.9", "9.0")
# How each loads the pixels of an mma.
KERNELS = {"spab_kernel": "LDSM", "tail_kernel": "LDSM", "head_kernel": "LDS"}
# Template arguments behind the type; the last are warps that share rows and that share channels,
# and, but for the tail, blocks per SM.
ARGUMENTS = re.compile(r"Float16E((?:Li\d+E)+)E+v")

pytestmark = pytest.mark.skipif(
    not _library.cuda_archs, reason="the library is built without CUDA kernels"
)


@lru_cache
def cuobjdump(*arguments: str) -> str:
    places = os.environ.get("PATH", "")
    if home := os.environ.get("CUDA_HOME"):
        places = os.path.join(home, "bin") + os.pathsep + places
    if _library.triton_installed:
        import triton

        places += os.pathsep + str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    if (tool := shutil.which("cuobjdump", path=places)) is None:
        pytest.skip("there is no cuobjdump, neither on PATH nor in triton")
    assert _library.compiled is not None
    library = _library.compiled.__file__
    assert library is not None
    command = [tool, *arguments, library]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def of(arch: str) -> str:
    if arch not in re.findall(r"\d+\.\d", _library.cuda_archs):
        pytest.skip(f"the library is not built for {arch}")
    return f"sm_{arch.replace('.', '')}"


def loops(code: str) -> Iterator[list[str]]:
    """The instructions of each innermost loop: from the target of a branch back to the branch."""
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@!?U?P\w+ +)?(\S+)(.*?);", code)
    listing = [(int(address, 16), name, rest) for address, name, rest in found]
    bounds = []
    for address, name, rest in listing:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if name.startswith("BRA") and target and int(target[1], 16) < address:
            bounds.append((int(target[1], 16), address))
    for begin, end in bounds:
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in bounds):
            yield [name for address, name, _ in listing if begin <= address <= end]


@pytest.mark.parametrize(
    "arch", ["8.0", "9.0", *(pytest.param(a, marks=pytest.mark.slow) for a in ("8.6", "8.9"))]
)
def test_convolutions_are_on_the_tensor_cores(arch: str) -> None:
    functions = cuobjdump("-sass", "-arch", of(arch)).split("Function : ")[1:]
    seen = dict.fromkeys(KERNELS, 0)
    for code in functions:
        name = code.split()[0]
        kernel = next((k for k in KERNELS if k in name), None)
        if kernel is None:
            continue
        seen[kernel] += 1
        convolutions = [body for body in loops(code) if sum(n.startswith("HMMA") for n in body) > 1]
        assert convolutions, name
        load = KERNELS[kernel]
        with_pixels = [b for b in convolutions if any(n.split(".")[0] == load for n in b)]
        # Three convolutions; two (the tail's 1x1 reads device memory); one.
        assert len(with_pixels) == {"spab_kernel": 3, "tail_kernel": 2, "head_kernel": 1}[kernel]
        for body in with_pixels:
            products = sum(n.startswith("HMMA") for n in body)
            loads = sum(n.split(".")[0] == load for n in body)
            assert not [n for n in body if n.startswith(("LDL", "STL", "BAR"))], name
            # Each matrix, or its four parts, serves several mma, and they are most of the loop.
            assert products >= 2 * loads / (4 if load == "LDS" else 1), name
            assert len(body) < 4 * products + 40, name
    assert all(seen.values()), seen


@pytest.mark.parametrize("arch", ARCHS)
def test_resources(arch: str) -> None:
    usage = re.findall(
        r"Function (\S+_kernel\S+):\s*(.*)", cuobjdump("-res-usage", "-arch", of(arch))
    )
    checked = 0
    for name, line in usage:
        if not any(kernel in name for kernel in KERNELS):
            continue
        checked += 1
        assert "STACK:0 " in line, (name, line)
        assert "LOCAL:0 " in line, (name, line)
        match = ARGUMENTS.search(name)
        assert match is not None, name
        arguments = [int(n) for n in re.findall(r"\d+", match[1])]
        rows, channels, blocks = [*arguments, 1][-3:] if "tail" in name else arguments[-3:]
        registers = re.search(r"REG:(\d+)", line)
        assert registers is not None
        # An SM has 65,536 registers, dealt to warps in portions of 8 a thread.
        each = -(-int(registers[1]) // 8) * 8
        assert each * 64 * rows * channels * blocks <= 65536, (name, line)
    assert checked
