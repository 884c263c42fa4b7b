"""Records in every result file the machine and the versions."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from espan_kernels import backends


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    """Replace pytest-benchmark's information, which includes the name of the machine."""
    machine_info.clear()
    machine_info |= {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_when_done": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "espan": _commit(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backends": {b.name: dict(b.details) for b in backends.available().values() if b.available},
    }
