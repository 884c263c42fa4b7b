"""The Triton kernels on the CPU: the tests in `interpreted/`, in Triton's interpreter.

In a subprocess, because TRITON_INTERPRET must be set before Triton is imported; in one for all of
them, because it takes seconds to start.
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
def test_in_the_interpreter(tests: str) -> None:
    files = sorted((HERE / "interpreted").glob("*.py"))
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", tests, *files],
        cwd=HERE.parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
