"""The compiled library as a file: dependencies, contents, and the fallback without it."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from espan_kernels import _library

COMPILED = _library.compiled
needs_library = pytest.mark.skipif(COMPILED is None, reason=_library.why_not_compiled)
needs_cuda_kernels = pytest.mark.skipif(
    not _library.cuda_archs, reason="the library is built without CUDA kernels"
)


def library_file() -> str:
    assert COMPILED is not None
    assert COMPILED.__file__ is not None
    return COMPILED.__file__


def run(*command: str | Path, cwd: Path | None = None) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd).stdout


def tool(name: str) -> str:
    """A tool of the CUDA toolkit, or that of Triton."""
    places = os.environ.get("PATH", "")
    if home := os.environ.get("CUDA_HOME"):
        places = os.path.join(home, "bin") + os.pathsep + places
    if _library.triton_installed:
        import triton

        places += os.pathsep + str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin")
    if (found := shutil.which(name, path=places)) is None:
        pytest.skip(f"there is no {name}, neither on PATH nor in triton")
    return found


def cuobjdump(*arguments: str) -> str:
    return run(tool("cuobjdump"), *arguments, library_file())


def machine_code(folder: Path, kernel: str) -> list[str]:
    """Disassemble the sources that contain ``kernel``, for every architecture.

    The whole library would take half a minute.
    """
    run(tool("cuobjdump"), "-xelf", "all", library_file(), cwd=folder)
    files = [file for file in folder.glob("*.cubin") if kernel.encode() in file.read_bytes()]
    code = [run(tool("cuobjdump"), "-sass", file) for file in files]
    return [function for text in code for function in text.split("Function : ")[1:]]


@needs_library
def test_python_schemas_equal_the_compiled_ones() -> None:
    for schema in _library.SCHEMAS:
        op = getattr(torch.ops.espan, schema.split("(")[0])
        assert str(op.default._schema) == f"espan::{schema}"


@needs_library
@pytest.mark.skipif(not shutil.which("readelf"), reason="there is no readelf")
def test_does_not_link_cuda_or_python() -> None:
    assert Path(library_file()).name == "_C.abi3.so"
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library_file()))
    assert "libtorch.so" in needed
    assert not [
        name for name in needed if re.match(r"libcu|libnv|libpython|libtorch_(cuda|py)", name)
    ]
    exported = run("readelf", "--dyn-syms", "-W", library_file())
    assert not re.search(r"GLOBAL DEFAULT +\d+ cuda", exported), "cudart's symbols must stay ours"


@needs_cuda_kernels
def test_contains_the_reported_architectures() -> None:
    expected = set(re.findall(r"(\d+\.\d[af]?)", _library.cuda_archs))
    found = set(re.findall(r"sm_(\d+[af]?)\.cubin", cuobjdump("--list-elf")))
    # For 9.0, it is the variant with wgmma.
    assert found == {"90a" if arch == "9.0" else arch.replace(".", "") for arch in expected}
    ptx = {arch.replace(".", "") for arch in re.findall(r"([\d.]+)\+PTX", _library.cuda_archs)}
    assert set(re.findall(r"sm_(\d+)\.ptx", cuobjdump("--list-ptx"))) == ptx


@needs_cuda_kernels
def test_gate_uses_no_local_memory_and_reads_16_bytes_at_once(tmp_path: Path) -> None:
    usage = re.findall(r"Function (\S*gate\S*):\s*(.*)", cuobjdump("-res-usage"))
    assert usage
    for name, line in usage:
        assert "STACK:0 " in line, (name, line)
        assert "LOCAL:0 " in line, (name, line)
    functions = machine_code(tmp_path, "gate_forward")
    gates = [f for f in functions if "gate_forward" in f.split()[0] or "gate_back" in f.split()[0]]
    assert gates
    for code in gates:
        inputs = 3 if "gate_backward" in code.split()[0] else 2
        assert len(re.findall(r"LDG\.E\S*\.128", code)) == inputs, code.split()[0]
        assert len(re.findall(r"STG\.E\S*\.128", code)) == inputs - 1, code.split()[0]


# The message if the compiled library is missing or cannot be loaded.
WITHOUT_LIBRARY = """
import importlib.abc, importlib.machinery, sys, torch

class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == "espan_kernels._C":
            return importlib.machinery.ModuleSpec(name, self)
    def exec_module(self, module):
        raise ImportError("libtorch.so: undefined symbol")

if sys.argv[1] == "missing":
    sys.modules["espan_kernels._C"] = None
else:
    sys.meta_path.insert(0, Broken())

import espan_kernels as k
from tests.kernels import gate_cases as cases
from tests.kernels.test_gate import test_layouts, test_expanded_inputs, test_gradcheck
from tests.kernels.test_gate import test_second_derivative_is_rejected, test_opcheck

def check():
    for dtype in (torch.float32, torch.float16):
        grad, o, x = cases.inputs(100, dtype=dtype)
        cases.check_values(k.gate, o, x)
        cases.check_gradients(torch.ops.espan.gate_backward, grad, o, x)
    for layout in "contiguous", "channels_last", "cropped":
        test_layouts("channels_last", layout)
    test_gradcheck()
    test_expanded_inputs()
    test_second_derivative_is_rejected()
    test_opcheck(torch.float32)

if sys.argv[1] == "missing":  # once is enough: both end with the same registrations
    check()
try:
    k.gate(torch.zeros(2), torch.zeros(3))
except RuntimeError as error:
    print(error)
print(k.backends.available()["cpu"].reason)
print(k.backends.choose("cpu"))
"""

ROOT = Path(__file__).parents[2]
IN_THE_SOURCE_FOLDER = (
    "espan was imported from its source folder {}, in which nothing is built: use the installed "
    "espan in another folder, or install from the source folder with "
    "`pip install --no-build-isolation -e .`"
)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", IN_THE_SOURCE_FOLDER.format(ROOT)),
        ("broken", "the compiled library cannot be loaded: libtorch.so: undefined symbol"),
    ],
)
def test_fallback_to_the_reference(how: str, reason: str) -> None:
    output = run(sys.executable, "-W", "ignore", "-c", WITHOUT_LIBRARY, how).splitlines()
    assert output == [
        "espan::gate: x has shape [3]; it must have the shape of o, [2]",
        reason,
        "reference",
    ]


def test_why_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "espan_kernels" / "_library.py"))
    metadata = SimpleNamespace(read_text=lambda name: None)  # of a build with the library
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: metadata)
    installed = "the compiled library espan_kernels/_C.abi3.so is not installed"
    assert _library._why_absent() == installed
    (tmp_path / "setup.py").touch()
    assert _library._why_absent() == installed
    (tmp_path / "csrc").mkdir()
    assert _library._why_absent() == IN_THE_SOURCE_FOLDER.format(tmp_path)


@needs_library
@pytest.mark.parametrize("schema", ["new(Tensor x) -> Tensor", "gate(Tensor o) -> Tensor"])
def test_the_library_of_another_version(monkeypatch: pytest.MonkeyPatch, schema: str) -> None:
    monkeypatch.setattr(_library, "SCHEMAS", (*_library.SCHEMAS, schema))
    message = f"{library_file()} belongs to another version of espan: it lacks the op {schema}; ins"
    with pytest.raises(ImportError, match=re.escape(message)):
        _library._load()


@needs_library
@pytest.mark.parametrize("name", ["portable", "", "no such path"])
def test_espan_cpu_selects_the_path(name: str) -> None:
    code = "import espan_kernels; print(espan_kernels.backends.available()['cpu'].details['path'])"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"ESPAN_CPU": name},
        capture_output=True,
        text=True,
    )
    if name == "no such path":
        message = f"ESPAN_CPU: there is no CPU path '{name}'; choose auto, amx, avx512"
        assert message in result.stderr
    else:
        assert _library.compiled is not None
        _library.compiled.select_cpu_path("auto")
        assert result.stdout == f"{name or _library.compiled.cpu_path()}\n", result.stderr
