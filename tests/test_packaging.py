"""The wheel that is built, installed into an empty environment, and the direction of imports."""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, **options: object) -> str:
    """What a command prints; it must succeed."""
    result = subprocess.run(command, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git has and would have: no build outputs."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    target = tmp_path_factory.mktemp("source")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without nvcc, as on a machine that has none: CUDA_HOME is an empty directory."""
    target, no_cuda = (tmp_path_factory.mktemp(name) for name in ("wheel", "no_cuda"))
    environment = os.environ | {"CUDA_HOME": str(no_cuda), "ESPAN_BUILD": "auto"}
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    log = run(*command, "--wheel-dir", target, source, env=environment)
    assert "espan: building CPU kernels only: nvcc not found" in log
    (path,) = target.iterdir()
    return path


def test_one_wheel_serves_all_pythons(wheel: Path) -> None:
    assert "-cp310-abi3-" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "espan_kernels/_C.abi3.so" in names
    assert "espan_kernels/triton/gate.py" in names
    assert {"espan/py.typed", "espan_kernels/py.typed"} <= set(names)
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"espan", "espan_kernels"}
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".cuh"))]


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with this wheel; everything else comes from the present one.

    A .pth file puts the present site-packages behind its own.  The .pth files there, an editable
    espan's among them, are not followed.
    """
    target = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", target)
    python = target / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run(*command, "--ignore-installed", "--no-index", wheel)
    return python


def test_installed_wheel_works_outside_the_source_tree(python: Path, tmp_path: Path) -> None:
    code = """
import torch, espan_kernels
from espan_kernels import backends, gate, reference
o, x = torch.randn(2, 1000)
torch.testing.assert_close(gate(o, x), reference.gate(o, x))
print(espan_kernels.__file__)
print(backends.available()["cpu"].available, backends.available()["cuda"].reason)
"""
    output = run(python, "-c", code, cwd=tmp_path).splitlines()
    assert Path(output[0]).is_relative_to(python.parents[1])
    reason = "this build has no CUDA kernels: nvcc was not found when it was built"
    assert output[1] == f"True {reason}"


def test_installed_command_works_outside_the_source_tree(python: Path, tmp_path: Path) -> None:
    wide = os.environ | {"COLUMNS": "300"}  # or its table would break the line
    output = run(python.parent / "espan", "doctor", cwd=tmp_path, env=wide)
    assert "nvcc was not found when it was built" in output


def test_source_distribution_has_the_sources(source: Path, tmp_path: Path) -> None:
    code = (
        "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    )
    environment = os.environ | {"ESPAN_BUILD": "cpu"}
    name = run(sys.executable, "-c", code, tmp_path, cwd=source, env=environment).splitlines()[-1]
    shutil.unpack_archive(tmp_path / name, tmp_path)
    unpacked = tmp_path / name.removesuffix(".tar.gz")
    for path in (ROOT / "csrc").rglob("*.*"):
        assert (unpacked / path.relative_to(ROOT)).is_file(), path


def imports() -> Iterator[tuple[Path, str, bool]]:
    """Every import in the tree: the file, the module, whether importing the file runs it."""
    for folder in ("espan", "espan_kernels", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            inside = {
                id(node)
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
                for node in ast.walk(function)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    modules = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    modules = [node.module or ""]
                else:
                    continue
                for module in modules:
                    yield path.relative_to(ROOT), module, id(node) not in inside


def test_import_direction() -> None:
    """csrc, espan_kernels, espan, then benchmarks and tests: each knows those before it only."""
    wrong = []
    for path, module, at_once in imports():
        top = module.split(".")[0]
        folder = path.parts[0]
        in_triton = path.parts[:2] == ("espan_kernels", "triton")
        if (
            (folder == "espan_kernels" and top == "espan")
            or (folder != "benchmarks" and top in ("tests", "benchmarks"))
            or (top == "triton" and at_once and not in_triton)
            or (module.startswith("espan_kernels.triton") and at_once and not in_triton)
        ):
            wrong.append(f"{path} imports {module}")
    assert not wrong


def test_json_is_written_without_nan() -> None:
    """JSON has neither NaN nor infinity, and `json.dumps` writes both by default."""
    wrong, seen = [], 0
    for folder in ("espan", "espan_kernels", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                    "json.dump",
                    "json.dumps",
                ):
                    seen += 1
                    if not any(ast.unparse(k) == "allow_nan=False" for k in node.keywords):
                        wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert seen
    assert not wrong
