"""The machine code of spab, head, tail and upsample uses tensor cores and no local memory."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from espan_kernels import _library

ROOT = Path(__file__).parents[2]
IN_LIBRARY = ("8.0", "9.0", "10.0", "12.0")
# By default, these GPUs run the code for 8.0.
COMPILED_HERE = ("8.6", "8.9")
COMPILED = [pytest.param(arch, marks=pytest.mark.slow) for arch in COMPILED_HERE]
# The instruction with which each loads the pixels of an mma.
KERNELS = {
    "spab_kernel": "LDSM",
    "tail_kernel": "LDSM",
    "head_kernel": "LDS",
    "head_pixels_kernel": "LDSM",
    "upsample_kernel": "LDSM",
}
SOURCES = ("spab", "tail", "head", "upsample")
# Template arguments after the type.  The last ones are the warps that share rows, the warps that
# share channels and, except for the tail, the blocks per SM.  That of upsample is the height.
ARGUMENTS = re.compile(r"Float16E((?:Li\d+E)+)E+v")

pytestmark = pytest.mark.skipif(
    not _library.cuda_archs, reason="the library is built without CUDA kernels"
)


def tool(name: str) -> str:
    places = os.environ.get("PATH", "")
    if home := os.environ.get("CUDA_HOME"):
        places = os.path.join(home, "bin") + os.pathsep + places
    if _library.triton_installed:
        import triton

        places += os.pathsep + str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    if (found := shutil.which(name, path=places)) is None:
        pytest.skip(f"there is no {name}")
    return found


@lru_cache
def fat_binaries() -> list[Path]:
    """The kernels compiled for `COMPILED_HERE`; this takes minutes, so they are cached."""
    folder = ROOT / "csrc"
    sources = [p for p in sorted(folder.rglob("*")) if p.suffix in (".h", ".cuh", ".cu")]
    version = subprocess.run([tool("nvcc"), "--version"], capture_output=True).stdout
    texts = version + b"".join(p.read_bytes() for p in sources)
    kept = ROOT / "build" / "machine_code" / hashlib.sha256(texts).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    command = [tool("nvcc"), "-fatbin", "-O3", "-std=c++17", "--threads=2"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    command += [f"-I{Path(torch.__file__).parent / 'include'}"]
    for arch in COMPILED_HERE:
        number = arch.replace(".", "")
        command += [f"-gencode=arch=compute_{number},code=sm_{number}"]
    files = [kept / f"{source}.fatbin" for source in SOURCES]
    for file in files:
        if not file.exists():
            part = file.with_suffix(f".{os.getpid()}")
            source = folder / "cuda" / f"{file.stem}.cu"
            subprocess.run([*command, source, "-o", part], check=True)
            part.rename(file)
    return files


@lru_cache
def cuobjdump(arch: str, *arguments: str) -> str:
    """The disassembly for an architecture, of the library or of the kernels compiled here."""
    if arch in COMPILED_HERE:
        files = [str(file) for file in fat_binaries()]
    elif arch in re.findall(r"\d+\.\d", _library.cuda_archs):
        assert _library.compiled is not None
        assert _library.compiled.__file__ is not None
        files = [_library.compiled.__file__]
    else:
        pytest.skip(f"the library is not built for {arch}")
    exact = arch.replace("9.0", "9.0a").replace(".", "")
    command = [tool("cuobjdump"), *arguments, "-arch", f"sm_{exact}"]
    runs = [
        subprocess.run([*command, f], check=True, capture_output=True, text=True) for f in files
    ]
    return "".join(run.stdout for run in runs)


def loops(code: str) -> Iterator[list[str]]:
    """The instructions of each innermost loop, from the target of a backward branch to it."""
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


@pytest.mark.parametrize("arch", ["9.0", pytest.param("8.0", marks=pytest.mark.slow), *COMPILED])
def test_convolutions_use_tensor_cores(arch: str) -> None:
    functions = cuobjdump(arch, "-sass").split("Function : ")[1:]
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
        assert len(with_pixels) == {"spab_kernel": 3, "tail_kernel": 2}.get(kernel, 1)
        for body in with_pixels:
            products = sum(n.startswith("HMMA") for n in body)
            loads = sum(n.split(".")[0] == load for n in body)
            assert not [n for n in body if n.startswith(("LDL", "STL", "BAR"))], name
            # Several mma use each matrix or its four parts, and most of the loop consists of mma.
            assert products >= 2 * loads / (4 if load == "LDS" else 1), name
            assert len(body) < 4 * products + 40, name
    assert all(seen.values()), seen


@pytest.mark.parametrize("arch", [*IN_LIBRARY, *COMPILED])
def test_resources(arch: str) -> None:
    usage = re.findall(r"Function (\S+_kernel\S+):\s*(.*)", cuobjdump(arch, "-res-usage"))
    checked = 0
    for name, line in usage:
        if not any(kernel in name for kernel in KERNELS):
            continue
        checked += 1
        # On sm_120, ptxas 13.0 spills four registers of the tail with a 1x1 and 32 channels.
        spills = arch == "12.0" and "ELi32ELi6ELi16ELi2ELi1E" in name
        assert ("STACK:16 " if spills else "STACK:0 ") in line, (name, line)
        assert "LOCAL:0 " in line, (name, line)
        match = ARGUMENTS.search(name)
        assert match is not None, name
        arguments = [int(n) for n in re.findall(r"\d+", match[1])]
        if "upsample" in name:
            rows, channels, blocks = arguments[-1] // 4, 1, 1
        else:
            rows, channels, blocks = [*arguments, 1][-3:] if "tail" in name else arguments[-3:]
        registers = re.search(r"REG:(\d+)", line)
        assert registers is not None
        # An SM has 65,536 registers, allocated to warps in units of 8 per thread.
        each = -(-int(registers[1]) // 8) * 8
        assert each * 64 * rows * channels * blocks <= 65536, (name, line)
    assert checked


def test_streamed_products_run_asynchronously() -> None:
    """The products of a row are two groups; if nvcc serialised them, it would wait after each."""
    functions = cuobjdump("9.0", "-sass").split("Function : ")[1:]
    streamed = {f.split()[0]: f for f in functions if "_stream_kernel" in f.split()[0]}
    assert streamed
    for name, code in streamed.items():
        # Of spab, also the codes of the activation and the gate.
        match = re.search(r"Float16E((?:L(?:NS0_\d+[A-Za-z]+E|i)\d+E)+)E+v", name)
        assert match is not None, name
        p, *others = (int(n) for n in re.findall(r"(\d+)E", match[1]))
        steps = p // 16
        taps = 9 * steps * (3 if p > 32 else 1)  # of three rows; above 32 channels they are apart
        if "head" in name:  # a loop has one row
            kernel, unshuffle, _ = others
            groups, products = 1, kernel * -(-(3 if unshuffle == 1 else 16) * kernel // 16)
        elif "upsample" in name:  # three rows
            groups, products = 6, 9 * steps * (3 if p > 96 else 1)
        elif "tail" in name and others[2] == 3:  # three rows of two convolutions, and of the sides
            groups, products = 12, taps + 9 * steps + 3 * others[1] * steps
        elif "tail" in name:  # a row of all maps, and three rows of a convolution
            up = 9 * steps * (3 if p > 48 else 1)
            groups, products = 7, (1 + others[1]) * steps + up
        else:  # three rows of three convolutions; the gate's 1x1 also of the last row
            learned = others[1] in (1, 2)
            groups, products = 18 + 4 * learned, 3 * taps + 4 * steps * learned
        counts = {i: code.count(i) for i in ("HGMMA", "WARPGROUP.ARRIVE", "DEPBAR.LE gsb0")}
        assert list(counts.values()) == [products, groups, groups], (name, counts)
        assert not re.search(r"\b(LDL|STL)\b", code), name
        if "head" in name:
            continue
        # ldmatrix, and 16-byte copies.
        assert "LDSM.16.M88.4" in code
        assert "LDGSTS.E.BYPASS.128" in code


@pytest.mark.parametrize("arch", ["9.0", pytest.param("8.0", marks=pytest.mark.slow)])
def test_relu_keeps_nan(arch: str) -> None:
    """The plain maximum of NaN and 0 is 0, which would hide it from the check of the image."""
    functions = cuobjdump(arch, "-sass").split("Function : ")[1:]
    blocks = [
        f for f in functions if re.search(r"spab_kernel|spab_stream.*ActivationE2", f.split()[0])
    ]
    assert blocks
    for code in blocks:
        if "LDSM" in code:  # not one of the empty ones
            maxima = re.findall(r"HMNMX2\S*", code)
            assert maxima
            assert all(".NAN" in m for m in maxima), code.split()[0]


def test_streamed_kernels_are_empty_elsewhere() -> None:
    """They need wgmma, which only Hopper has."""
    for name in cuobjdump("8.0", "-sass").split("Function : ")[1:]:
        if "_stream_kernel" in name.split()[0]:
            assert len(re.findall(r"/\*[0-9a-f]{4}\*/", name)) < 40
