"""Builds and loads the emulated kernels: csrc/cuda/<op>.cuh as a shared library, with g++."""

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "cuda"
CACHE = ROOT / "build" / "emulator"
# With AVX-512, g++ 12 takes the gate of spab.cuh for uninitialised: it is used under the condition
# under which it is prepared.
WARNINGS = ("-Wall", "-Werror", "-Wno-psabi", "-Wno-maybe-uninitialized")

# A planted bug, to test the tests: the file of a kernel, the correct text and its replacement.
Bug = tuple[str, str, str]


class Buffer(ctypes.Structure):
    """An array that a kernel may access."""

    _fields_ = (("address", ctypes.c_size_t), ("bytes", ctypes.c_size_t))


class Module:
    """The kernels of one source file.  Each instance is a dict of its properties and ``run``."""

    Buffer = Buffer

    def __init__(self, library: Path) -> None:
        functions = ctypes.CDLL(str(library))
        self._run = functions.espan_run
        functions.espan_instances.restype = self._run.restype = ctypes.c_char_p
        self._run.argtypes = [
            ctypes.c_int,
            ctypes.POINTER(Buffer),
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_int64),
        ]
        self.instances: list[dict[str, Any]] = json.loads(functions.espan_instances())
        for i, instance in enumerate(self.instances):
            instance["run"] = partial(self._call, i)

    def _call(self, instance: int, *arguments: Any) -> dict[str, list[int]]:
        """Wavefronts of shared memory accesses by kind: the fewest possible, and those needed."""
        given = list(_flat(arguments))
        buffers = [a for a in given if isinstance(a, Buffer)]
        numbers = [a for a in given if not isinstance(a, Buffer)]
        answer: str = self._run(
            instance,
            (Buffer * len(buffers))(*buffers),
            len(buffers),
            (ctypes.c_int64 * len(numbers))(*numbers),
        ).decode()
        if answer.startswith("!"):
            raise RuntimeError(answer[1:])
        wavefronts: dict[str, list[int]] = json.loads(answer)
        return wavefronts


def _flat(arguments: Any) -> Iterator[Any]:
    for a in arguments:
        yield from _flat(a) if isinstance(a, list | tuple) else (a,)


def load(op: str, *, bug: Bug | None = None, macros: tuple[str, ...] = ()) -> Module:
    """The module that runs ``op``'s kernels under the emulator, optionally with a planted bug."""
    sources = {f"cuda/{p.name}": p.read_text() for p in sorted(KERNELS.glob("*.cuh"))}
    sources |= {p.name: p.read_text() for p in (*sorted(HERE.glob("*.h")), HERE / f"{op}.cpp")}
    if bug is not None:
        plant(sources, (f"cuda/{bug[0]}", *bug[1:]))
    options = ["-march=native", *WARNINGS, "-Wno-unknown-pragmas", *(f"-D{m}" for m in macros)]
    return Module(library(op, sources, options))


def plant(sources: dict[str, str], bug: Bug) -> None:
    file, right, wrong = bug
    assert sources[file].count(right) == 1, f"{file} has changed: plant the bug anew"
    sources[file] = sources[file].replace(right, wrong)


def library(name: str, sources: Mapping[str, str], options: list[str]) -> Path:
    """``name``.cpp of ``sources`` and the emulated machine as one shared library."""
    files = sorted(p for p in HERE.iterdir() if p.stem in ("machine", "ordering"))
    machine = {p.name: p.read_text() for p in files}
    units = [file for file in machine if file.endswith(".cpp")]
    linked = _built("machine.o", machine, [*WARNINGS, "-r", *units])
    return _built(f"{name}.so", sources, [*options, "-I.", "-shared", f"{name}.cpp", str(linked)])


def _built(name: str, sources: Mapping[str, str], arguments: list[str]) -> Path:
    """A file that g++ builds from ``sources``, cached under a hash of all its inputs."""
    compiler, version = _compiler()
    key = hashlib.sha256(repr((dict(sources), arguments, version)).encode()).hexdigest()[:16]
    target = CACHE / f"{Path(name).stem}_{key}{Path(name).suffix}"
    CACHE.mkdir(parents=True, exist_ok=True)
    # Threads and processes that need the same file wait until the first one has built it.
    with target.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        for path, text in sources.items():
            (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / path).write_text(text)
        made = target.with_suffix(".part")
        # -O1, since the libraries take longer to compile than to run.
        command = [compiler, "-O1", "-std=c++17", "-fPIC", *arguments, "-o", str(made)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        os.replace(made, target)
    return target


@cache
def _compiler() -> tuple[str, str]:
    """The path of g++, and text that identifies its version, target and options."""
    compiler = shutil.which("g++")
    if compiler is None or platform.machine() != "x86_64":
        pytest.skip("the emulator needs g++ on x86-64")
    command = [compiler, "-march=native", "-E", "-v", "-"]
    run = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    return compiler, run.stderr


def check_shared_memory(module: Module) -> None:
    """For each P, every kind of GPU has an instance that fits its shared memory."""
    for per_block, per_sm in ((99, 100), (163, 164), (227, 228)):  # KB: sm_86, 89, 120; 80; 90, 100
        fitting = {
            i["channels"]
            for i in module.instances
            if i["shared_bytes"] <= per_block * 1024
            # CUDA reserves 1 KB per block.
            and i["blocks_per_sm"] * (i["shared_bytes"] + 1024) <= per_sm * 1024
        }
        assert fitting == {16, 32, 48, 64}


def buffer(module: Module, t: Tensor | None) -> Buffer:
    """A contiguous tensor as an argument of ``run``."""
    if t is None:
        return Buffer(0, 0)
    assert t.is_contiguous()
    return Buffer(t.data_ptr(), t.numel() * t.element_size())


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of NaN, or 255 for uint8, in which elements that a kernel does not write show."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 255, dtype=dtype)
