"""The wheels that are built, and installed into empty environments."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import espan

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path | None = None, **variables: str | Path) -> str:
    """The output of a command that must succeed, run with these environment variables."""
    inherited = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # a checkout, perhaps
    environment = inherited | {k: str(v) for k, v in variables.items()}
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked and the unignored files, without build outputs."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    target = tmp_path_factory.mktemp("source")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def build(source: Path, target: Path, message: str, **variables: str | Path) -> Path:
    """The wheel that pip builds of a copy of the sources, which prints `message`."""
    log = target.with_name(f"{target.name}.log")
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps"]
    run(*command, "--log", log, "--wheel-dir", target, source, **variables)
    assert message in log.read_text()
    (path,) = target.iterdir()
    return path


def install(wheel: Path, target: Path) -> Path:
    """The Python of a new environment with this wheel; all other packages are the current ones.

    A .pth file appends the current site-packages to its path.  The .pth files there, such as that
    of an editable espan, are not processed.
    """
    run(sys.executable, "-m", "venv", "--without-pip", target)
    python = target / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "present.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps"]
    run(*command, "--ignore-installed", "--no-index", wheel)
    return python


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built without nvcc: CUDA_HOME is an empty directory."""
    target, no_cuda = (tmp_path_factory.mktemp(name) for name in ("wheel", "no_cuda"))
    message = "espan: building CPU kernels only: nvcc not found"
    return build(source, target, message, CUDA_HOME=no_cuda, ESPAN_BUILD="auto")


@pytest.mark.slow
def test_one_wheel_for_all_pythons(wheel: Path) -> None:
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
    return install(wheel, tmp_path_factory.mktemp("environment"))


@pytest.mark.slow
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


@pytest.mark.slow
def test_installed_command_works_outside_the_source_tree(python: Path, tmp_path: Path) -> None:
    # Wide, so that the table does not break lines.
    output = run(python.parent / "espan", "doctor", cwd=tmp_path, COLUMNS="300")
    assert "nvcc was not found when it was built" in output


@pytest.fixture(scope="module")
def uncompiled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel that ESPAN_BUILD=none builds."""
    message = "espan: building no compiled kernels: it was built with ESPAN_BUILD=none"
    wheel = build(source, tmp_path_factory.mktemp("pure"), message, ESPAN_BUILD="none")
    assert wheel.name.endswith("-py3-none-any.whl")
    return install(wheel, tmp_path_factory.mktemp("uncompiled"))


def test_doctor_reports_why_nothing_is_compiled(uncompiled: Path, tmp_path: Path) -> None:
    report = json.loads(run(uncompiled.parent / "espan", "doctor", "--json", cwd=tmp_path))
    reasons = {backend["name"]: backend["reason"] for backend in report["backends"]}
    why = "this build has no compiled kernels: it was built with ESPAN_BUILD=none"
    assert reasons["cpu"] == reasons["cuda"] == why
    assert reasons["reference"] == ""


def test_the_licence_of_the_weights_is_installed_with_what_it_names(
    uncompiled: Path, tmp_path: Path
) -> None:
    code = "import espan, os; print(*os.listdir(os.path.dirname(espan.__file__) + '/weights'))"
    assert {"LICENSE", "README.md", "IMAGES.tsv"} <= set(
        run(uncompiled, "-c", code, cwd=tmp_path).split()
    )


def test_upscaling_without_compiled_kernels(uncompiled: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "small.png")
    options = ["small.png", "-o", "large.png", "--device", "cpu"]
    run(uncompiled.parent / "espan", "upscale", *options, cwd=tmp_path)
    result = np.array(PIL.Image.open(tmp_path / "large.png"))
    with torch.no_grad():
        expected = espan.load()(torch.tensor(image).permute(2, 0, 1)[None] / 255)[0]
    expected = expected.clamp(0, 1).mul(255).permute(1, 2, 0).numpy()
    assert result.shape == expected.shape == (80, 124, 3)
    assert np.abs(result - expected).max() < 0.501


def test_training_without_compiled_kernels(uncompiled: Path, tmp_path: Path) -> None:
    code = """
import torch, espan
from espan_kernels import frequency_loss
torch.manual_seed(0)
network = espan.load().train().requires_grad_(True)
optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
lr, hr = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 32, 32)
losses = []
for _ in range(2):
    loss, terms = frequency_loss(network(lr), hr)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[1] < losses[0], losses
"""
    run(uncompiled, "-c", code, cwd=tmp_path)


def test_a_machine_without_a_compiler(source: Path, tmp_path: Path) -> None:
    """PATH is an empty directory."""
    target, empty = tmp_path / "wheel", tmp_path / "empty"
    empty.mkdir()
    message = "espan: building no compiled kernels: no C++ compiler was found when it was built"
    wheel = build(source, target, message, PATH=empty, CXX="", ESPAN_BUILD="auto")
    assert wheel.name.endswith("-py3-none-any.whl")


def test_an_editable_install_drops_the_library_of_an_earlier_one(
    source: Path, tmp_path: Path
) -> None:
    library = source / "espan_kernels" / "_C.abi3.so"
    library.touch()
    code = "from setuptools import build_meta; import sys; build_meta.build_{}(sys.argv[1])"
    run(sys.executable, "-c", code.format("wheel"), tmp_path, cwd=source, ESPAN_BUILD="none")
    assert library.exists()
    run(sys.executable, "-c", code.format("editable"), tmp_path, cwd=source, ESPAN_BUILD="none")
    assert not library.exists()


def test_a_wheel_lacks_what_was_deleted_since_an_earlier_build(
    source: Path, tmp_path: Path
) -> None:
    earlier = source / "build" / "lib" / "espan" / "deleted.py"
    earlier.parent.mkdir(parents=True, exist_ok=True)
    earlier.touch()
    code = "from setuptools import build_meta; import sys; build_meta.build_wheel(sys.argv[1])"
    run(sys.executable, "-c", code, tmp_path, cwd=source, ESPAN_BUILD="none")
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert "espan/errors.py" in names
    assert "espan/deleted.py" not in names


# It logs the sources that it compiles, and writes the files that ninja expects.
COMPILER = r"""#!/bin/sh
while [ $# -gt 0 ]; do
  case $1 in
    -o) touch "$2"; object=$2 ;;
    -MF) depends=$2 ;;
    *.cpp) source=$1 ;;
  esac
  shift
done
[ -z "$depends" ] || { echo "$object: $source" > "$depends"; echo "$source" >> "$COMPILED"; }
"""


def test_an_editable_install_compiles_only_what_has_changed(source: Path, tmp_path: Path) -> None:
    compiler, log = tmp_path / "c++", tmp_path / "log"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    code = "from setuptools import build_meta; import sys; build_meta.build_editable(sys.argv[1])"
    settings = {"CXX": compiler, "COMPILED": log, "ESPAN_BUILD": "cpu"}
    settings["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"
    sources = {str(path) for path in source.glob("csrc/**/*.cpp")}
    for changed in (sources, {str(source / "csrc" / "bindings.cpp")}):
        for path in changed:
            os.utime(path)
        log.write_text("")
        run(sys.executable, "-c", code, tmp_path, cwd=source, **settings)
        assert set(log.read_text().splitlines()) == changed
    shutil.rmtree(source / "build")
    (source / "espan_kernels" / "_C.abi3.so").unlink()


def test_source_distribution_has_the_sources(source: Path, tmp_path: Path) -> None:
    """And all other files that make and the documentation name."""
    code = (
        "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    )
    output = run(sys.executable, "-c", code, tmp_path, cwd=source, ESPAN_BUILD="cpu")
    name = output.splitlines()[-1]
    shutil.unpack_archive(tmp_path / name, tmp_path)
    unpacked = tmp_path / name.removesuffix(".tar.gz")
    tracked = set(run("git", "ls-files", cwd=ROOT).splitlines()) - {".gitignore"}
    for file in tracked:
        assert (unpacked / file).is_file() or file.startswith(".ci/"), file
    assert not list(unpacked.rglob("*.so"))
