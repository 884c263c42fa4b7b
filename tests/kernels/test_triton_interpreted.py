"""The Triton kernels on the CPU: the tests in `interpreted/`, in Triton's interpreter.

A subprocess, because TRITON_INTERPRET must be set before Triton is imported.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("tests", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "file", sorted((HERE / "interpreted").glob("*.py")), ids=lambda path: path.stem
)
def test_in_the_interpreter(file: Path, tests: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", tests, file],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
