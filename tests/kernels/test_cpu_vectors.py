"""The vector classes of the CPU kernels, in C++: conversions, accuracy, memory accesses."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
TORCH = Path(torch.__file__).parent

every_path = pytest.mark.parametrize("path", ["portable", "avx2", "avx512"])


def build(name: str, folder: Path) -> Path:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    command = [compiler, "-O2", "-std=c++17", "-w", HERE / f"{name}.cpp", CSRC / "cpu" / "isa.cpp"]
    command += [f"-I{CSRC}", f"-I{TORCH / 'include'}", "-o", folder / name]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
    command += [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    subprocess.run(command, check=True)
    return folder / name


def run(program: Path, path: str) -> str:
    result = subprocess.run([program, path], capture_output=True, text=True)
    if "cannot run" in result.stderr:
        pytest.skip(f"this machine cannot run the CPU path {path}")
    assert result.returncode == 0, f"signal {-result.returncode}: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def gate_bounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("gate_bounds", tmp_path_factory.mktemp("bounds"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("vectors", tmp_path_factory.mktemp("vectors"))


@every_path
def test_gate_touches_nothing_outside_its_arrays(gate_bounds: Path, path: str) -> None:
    assert run(gate_bounds, path) == "nothing outside was touched\n"


@every_path
def test_conversions_and_exponentials(vectors: Path, path: str) -> None:
    """float16 and bfloat16 bits equal torch's; e^x and e^x - 1 are within 2 ulp, tanh within 6.

    SiLU and Mish are quotients of these, with two and four more roundings.
    """
    wrong_half, wrong_bfloat16, *errors = run(vectors, path).split()
    assert (wrong_half, wrong_bfloat16) == ("0", "0")
    exp_nonpositive, expm1, exp, tanh, silu, mish = map(float, errors)
    assert exp_nonpositive <= 2
    assert expm1 <= 2
    assert exp <= 2
    assert tanh <= 6
    assert silu <= 2.5
    assert mish <= 4.5
