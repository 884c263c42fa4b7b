"""What setup.py decides to build, and that it never falls back silently."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("espan_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("requested", "platform", "cxx", "nvcc", "decision"),
    [
        ("auto", "linux", "/bin/c++", "/bin/nvcc", ("cuda", "")),
        ("auto", "linux", "/bin/c++", None, ("cpu", "nvcc_not_found")),
        (
            "auto",
            "linux",
            None,
            "/bin/nvcc",
            ("none", "no C++ compiler was found when it was built"),
        ),
        ("auto", "darwin", "/bin/c++", None, ("none", "by default they are built on Linux only")),
        ("auto", "darwin", None, None, ("none", "by default they are built on Linux only")),
        ("auto", "win32", "cl", "nvcc", ("none", "by default they are built on Linux only")),
        ("none", "linux", "/bin/c++", "/bin/nvcc", ("none", "it was built with ESPAN_BUILD=none")),
        ("cpu", "linux", "/bin/c++", "/bin/nvcc", ("cpu", "cpu_requested")),
        ("cpu", "darwin", "/bin/c++", None, ("cpu", "cpu_requested")),
        ("cuda", "linux", "/bin/c++", "/bin/nvcc", ("cuda", "")),
    ],
)
def test_decision(
    setup: ModuleType,
    requested: str,
    platform: str,
    cxx: str | None,
    nvcc: str | None,
    decision: tuple[str, str],
) -> None:
    assert setup.decide(requested, platform, cxx, nvcc) == decision


def test_toolkit_version(setup: ModuleType, tmp_path: Path) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.1, V13.1.80'")
    nvcc.chmod(0o755)
    assert setup.toolkit_version(str(nvcc)) == "13.1"


def test_architectures(setup: ModuleType) -> None:
    known = "compute_80\ncompute_86\ncompute_90\ncompute_120\n"
    assert setup.choose_archs("", known) == ["8.0", "9.0", "12.0+PTX"]
    assert setup.choose_archs("8.0 9.0+PTX", known) == ["8.0", "9.0+PTX"]
    assert setup.choose_archs("8.0;9.0a;10.0f", known) == ["8.0", "9.0a", "10.0f"]
    assert setup.choose_archs("7.5 8.0 12.0+PTX", known) == ["8.0", "12.0+PTX"]
    with pytest.raises(SystemExit, match=r"need architecture 8\.0 or later"):
        setup.choose_archs("7.0;7.5+PTX", known)
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST has 'Hopper'"):
        setup.choose_archs("Hopper", known)
    assert setup.gencode("9.0a") == ["-gencode=arch=compute_90a,code=sm_90a"]
    assert setup.gencode("9.0+PTX") == [
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert setup.gencode("12.0+PTX") == [
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]


@pytest.mark.parametrize(
    ("requested", "cxx", "message"),
    [
        ("cuda", "c++", "ESPAN_BUILD=cuda, but nvcc was not found: set CUDA_HOME"),
        ("cuda", "no-c++", "ESPAN_BUILD=cuda, but no C++ compiler was found: install g++ or set"),
        ("cpu", "no-c++", "ESPAN_BUILD=cpu, but no C++ compiler was found: install g++ or set CXX"),
        ("gpu", "c++", "ESPAN_BUILD is 'gpu'; it must be auto, none, cpu or cuda"),
    ],
)
def test_an_impossible_build_fails_immediately(
    requested: str, cxx: str, message: str, tmp_path: Path
) -> None:
    environment = os.environ | {"ESPAN_BUILD": requested, "CUDA_HOME": str(tmp_path), "CXX": cxx}
    folders = ["--build-lib", tmp_path, "--build-temp", tmp_path]
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", *folders],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("torch", "found"),
    [("None", "none"), ("types.SimpleNamespace(__version__='2.9.1+cpu')", "2.9.1+cpu")],
)
def test_a_build_without_a_recent_pytorch_fails_immediately(torch: str, found: str) -> None:
    """The name of the compiler is that of any program: it is not run."""
    code = f"import runpy, sys, types; sys.modules['torch'] = {torch}; "
    code += "runpy.run_path('setup.py', run_name='__main__')"
    result = subprocess.run(
        [sys.executable, "-c", code, "--version"],
        cwd=ROOT,
        env=os.environ | {"ESPAN_BUILD": "cpu", "CXX": sys.executable},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert result.stderr == (
        f"building the kernels needs PyTorch 2.10 or later in this environment (found {found}): "
        "install it first, or build without compiled kernels with ESPAN_BUILD=none\n"
    )
