"""Builds and loads the emulated kernels: csrc/cuda/<op>.cuh as a Python module, by g++."""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "emulator"

# A bug for the tests of the tests: in a kernel's file, this text instead of that.
Bug = tuple[str, str, str]


def load(op: str, *, bug: Bug | None = None, macros: tuple[str, ...] = ()) -> ModuleType:
    """The module that runs ``op``'s kernels under the emulator, with a planted bug if wanted."""
    pytest.importorskip("pybind11")
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("the emulator needs g++ on x86-64")
    sources = {f"cuda/{p.name}": p.read_text() for p in sorted(KERNELS.glob("*.cuh"))}
    sources |= {p.name: p.read_text() for p in sorted(HERE.glob("*.[ch]*"))}
    if bug is not None:
        file, right, wrong = bug
        assert sources[f"cuda/{file}"].count(right) == 1, f"{file} has changed: plant the bug anew"
        sources[f"cuda/{file}"] = sources[f"cuda/{file}"].replace(right, wrong)
    key = hashlib.sha256(repr((sources, macros, compiler, sys.version)).encode()).hexdigest()[:16]
    name = f"espan_emulated_{op}_{key}"
    file_name = CACHE / f"{name}.so"
    if not file_name.exists():
        _build(compiler, file_name, op, sources, macros)
    spec = importlib.util.spec_from_file_location(name, file_name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _build(
    compiler: str, target: Path, op: str, sources: Mapping[str, str], macros: tuple[str, ...]
) -> None:
    import pybind11

    folder = target.with_suffix(f".{os.getpid()}")
    for path, text in sources.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    # -O1: the modules take longer to compile than to run.
    command = [compiler, "-O1", "-march=native", "-std=c++17", "-fPIC", "-shared"]
    command += ["-Wall", "-Werror", "-Wno-unknown-pragmas", f"-DESPAN_MODULE={target.stem}"]
    command += [f"-D{macro}" for macro in macros]
    command += [f"-I{folder}", f"-I{pybind11.get_include()}"]
    command += [f"-I{sysconfig.get_path('include')}"]
    command += [str(folder / f"{name}.cpp") for name in (op, "machine", "ordering")]
    result = subprocess.run([*command, "-o", folder / "module.so"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    os.replace(folder / "module.so", target)  # whole, whoever else builds the same
    shutil.rmtree(folder)


def check_shared_memory(module: ModuleType) -> None:
    """Each kind of GPU has an instance of each P that fits its shared memory."""
    for per_block, per_sm in ((99, 100), (163, 164), (227, 228)):  # KB: sm_86, 89, 120; 80; 90, 100
        fitting = {
            i["channels"]
            for i in module.instances
            if i["shared_bytes"] <= per_block * 1024
            # 1 KB of each block is the system's.
            and i["blocks_per_sm"] * (i["shared_bytes"] + 1024) <= per_sm * 1024
        }
        assert fitting == {16, 32, 48, 64}


def buffer(module: ModuleType, t: Tensor | None) -> object:
    """A contiguous tensor as the module takes it."""
    if t is None:
        return module.Buffer(0, 0)
    assert t.is_contiguous()
    return module.Buffer(t.data_ptr(), t.numel() * t.element_size())


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """NaN, or 255 for uint8: what a kernel leaves unwritten shows."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 255, dtype=dtype)
