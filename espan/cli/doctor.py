"""`espan doctor`."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import espan
from espan import checkpoints
from espan._version import __version__
from espan.cli import options
from espan.files import json_text
from espan.fused import default_device
from espan_kernels import backends


def command(as_json: options.JsonOut = False) -> None:
    """Show which backends can run on this machine, and why the others cannot."""
    device = default_device()
    found = backends.available(device)
    about = {
        "espan": __version__,
        "folder": str(Path(espan.__file__).parent),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "chosen backend": backends.choose(device),
        **_gpus(),
        "bundled weights": ", ".join(checkpoints.bundled()),
    }
    if as_json:
        listed = [{**dataclasses.asdict(b), "details": dict(b.details)} for b in found.values()]
        print(json_text({**about, "backends": listed}, indent=2))
        return
    console = Console()
    for key, value in about.items():
        console.print(f"{key:>16}  {value}", highlight=False)
    table = Table("backend", "", "details")
    for backend in found.values():
        details = ", ".join(f"{k} {v}" for k, v in backend.details.items())
        state = "[green]available[/]" if backend.available else "[yellow]no[/]"
        table.add_row(backend.name, state, details if backend.available else backend.reason)
    console.print(table)


def _gpus() -> dict[str, str]:
    """The name and the backend of each GPU, which may differ."""
    return {
        f"cuda:{i}": f"{torch.cuda.get_device_name(i)}: {backends.choose(f'cuda:{i}')}"
        for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    }
