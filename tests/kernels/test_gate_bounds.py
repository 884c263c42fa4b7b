"""The gate's CPU kernels touch nothing outside their arrays."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    path = tmp_path_factory.mktemp("bounds") / "gate_bounds"
    command = [compiler, "-O3", "-std=c++17", "-w", HERE / "gate_bounds.cpp", CSRC / "cpu/isa.cpp"]
    command += [f"-I{CSRC}", f"-I{TORCH / 'include'}", "-o", path]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    command += [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])
def test_nothing_outside_is_touched(program: Path, path: str) -> None:
    result = subprocess.run([program, path], capture_output=True, text=True)
    if "cannot run" in result.stderr:
        pytest.skip(f"this machine cannot run the CPU path {path}")
    assert (result.returncode, result.stdout) == (0, "nothing outside was touched\n")
