"""How weights came to be, as JSON data that goes into their file."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import torch
from accelerate import Accelerator

from espan._version import __version__
from espan.training.jobs import Job
from espan.training.run import Run
from espan.training.samples import Data


def record(
    run: Run,
    job: Job,
    data: Data,
    accelerator: Accelerator,
    *,
    total: int,
    measured: dict[str, Any],
) -> dict[str, Any]:
    """After `total` steps, in the stage `job`.  Paths of the machine are not in it."""
    if accelerator.device.type == "cuda":
        machine = torch.cuda.get_device_name(accelerator.device)
    else:
        machine = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    setup = run.setup
    return {
        "made by": f"espan train {__version__}",
        "date": datetime.date.today().isoformat(),
        "stage": job.name,
        "steps": total,
        **{name: value for name, value in measured.items() if name.startswith(("psnr", "ssim"))},
        "images": data.count,
        "pixels": data.pixels,
        "about": setup.about,
        "held_out": list(data.held_out),
        "from": setup.weights and setup.weights.rpartition("/")[2],
        "experiment": run.experiment.model_dump(mode="json", exclude_defaults=True),
        "precision": accelerator.mixed_precision if setup.precision is None else setup.precision,
        "processes": accelerator.num_processes,
        "machine": machine,
        "torch": torch.__version__,
    }
