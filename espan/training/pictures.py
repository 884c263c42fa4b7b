"""Pictures at the end of a run: curves, and crops of the network's output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from espan.data.degrade_table import DegradeTable
from espan.files import atomic_write
from espan.imaging import Image, imresize, write_image
from espan.models import Network
from espan.training.log import read_metrics
from espan.training.validation import ValidationImage
from espan.upscaling import Upscaler

CROP = 96  # HR pixels
CROPS = 4
_GAP = 4


def curves(folder: Path) -> None:
    """Write `curves.png`: loss, PSNR and learning rate over the steps of the run in `folder`."""
    metrics = read_metrics(folder)
    figure = Figure(figsize=(9, 9), layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(3, 1, sharex=True)
    panels = (("loss", ("loss",)), ("PSNR [dB]", ("psnr",)), ("learning rate", ("lr",)))
    for axes, (label, starts) in zip(rows, panels, strict=True):
        for name in dict.fromkeys(n for m in metrics for n in m if n.split()[0] in starts):
            points = [(m["step"], m[name]) for m in metrics if m.get(name) is not None]
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_ylabel(label)
        axes.legend()
        axes.grid(alpha=0.3)
    begins = {m["stage"]: m["step"] for m in reversed(metrics)}
    for stage, step in begins.items():
        for axes in rows:
            axes.axvline(step, color="0.8", zorder=0)
        rows[0].annotate(stage, (step, 1), xycoords=("data", "axes fraction"), fontsize=7, va="top")
    rows[-1].set_xlabel("step")
    with atomic_write(folder / "curves.png") as path:
        figure.savefig(path, format="png", dpi=110)


def crops(
    path: Path,
    network: Network,
    images: Sequence[ValidationImage],
    *,
    degrade: DegradeTable | None,
    device: torch.device,
) -> None:
    """Write a PNG with centres of a few validation images; columns: bicubic, network, HR."""
    upscaler = Upscaler(network, device=device)
    scale, rows = network.scale, []
    for image in images[:CROPS]:
        lr, hr = image.pair(scale, degrade)
        height, width = (min(CROP, n) // scale * scale for n in hr.shape[:2])
        y, x = ((n - m) // 2 for n, m in zip(hr.shape, (height, width), strict=False))
        columns = (imresize(lr, scale), upscaler(lr), hr)
        row = np.full((CROP + _GAP, 3 * (CROP + _GAP), 3), 255, np.uint8)
        for number, pixels in enumerate(columns):
            left = number * (CROP + _GAP)
            row[:height, left : left + width] = pixels[y : y + height, x : x + width]
        rows.append(row)
    write_image(path, Image(np.repeat(np.repeat(np.concatenate(rows), 3, axis=0), 3, axis=1)))
