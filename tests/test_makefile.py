"""The Makefile, with programs that only record how they are called."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """#!/bin/sh
[ "$1" = -V ] && { echo "Python VERSION"; exit; }
echo "$(basename "$0") $* $PYTHONPATH" >> LOG
"""

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="there is no make")


@pytest.fixture
def make(tmp_path):
    """A function that runs make in a folder with a .venv: its status, output and calls."""
    folder, log = tmp_path / "the source", tmp_path / "log"
    (folder / "csrc").mkdir(parents=True)
    (folder / "csrc" / "a.cpp").touch()
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    program = PROGRAM.replace("VERSION", platform.python_version()).replace("LOG", str(log))
    for name in ("python", "ruff", "mypy", "clang-format", "../oldest/bin/python"):
        path = folder / ".venv" / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(program)
        path.chmod(0o755)

    def make(*arguments):
        log.write_text("")
        command = ["make", f"PYTHON={sys.executable}", *arguments]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
        )
        return result.returncode, result.stdout + result.stderr, log.read_text()

    make.folder = folder
    return make


def test_what_is_installed_again(make):
    """Everything, with other settings."""
    for arguments, installs in (
        ([], True),
        ([], False),
        (["CXX=clang++"], True),
        (["CXX=clang++"], False),
        (["CUDA_HOME=/cuda"], True),
    ):
        status, output, calls = make(".venv/.espan", *arguments)
        assert status == 0, output
        assert ("pip install -q --no-build-isolation -e ." in calls) == installs, arguments
        assert "venv" not in calls


def test_another_python(make, tmp_path):
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho Python 3.99.0\n")
    other.chmod(0o755)
    status, output, _ = make(".venv/.espan", f"PYTHON={other}")
    assert status != 0
    current = platform.python_version()
    assert f".venv has Python {current}, but {other} is Python 3.99.0: delete .venv first" in output


def test_lint_without_git(make):
    status, output, calls = make("lint")
    assert status == 0, output
    assert "clang-format --dry-run --Werror csrc/a.cpp" in calls


def test_oldest_in_a_folder_with_a_space(make):
    status, output, calls = make("test-oldest")
    assert status == 0, output
    assert calls.splitlines()[-1].endswith(f" {make.folder}")


def test_clean(make):
    assert make("lint")[0] == 0
    (make.folder / "csrc" / "__pycache__").mkdir()
    status, output, _ = make("clean")
    assert status == 0, output
    left = {path.name for path in make.folder.rglob("*")}
    assert left == {"Makefile", "setup.py", "pyproject.toml", "csrc", "a.cpp"}
