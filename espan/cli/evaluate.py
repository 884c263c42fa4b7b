"""`espan evaluate`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from espan import checkpoints
from espan.cli import options
from espan.evaluation.evaluate import evaluate, find_pairs
from espan.files import atomic_write, json_text, refuse_inputs
from espan.upscaling import Upscaler


def command(
    hr: Annotated[Path, typer.Option(help="Folder of ground-truth images.")],
    lr: Annotated[
        Path | None,
        typer.Option(
            help="Folder of LR images: a.png or ax4.png for a.png; default: made from HR as by "
            "MATLAB's imresize."
        ),
    ] = None,
    weights: options.Weights = options.DEFAULT_WEIGHTS,
    y_channel: Annotated[
        bool, typer.Option("--y", help="Compare the luma (BT.601) instead of RGB.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the scores to this file.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the results to this folder, as PNG.")
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = "fp32",
    backend: options.Backend = "auto",
    normalization: options.Norm = "auto",
) -> None:
    """Measure PSNR and SSIM over a folder by the protocol of the challenge.

    RGB is compared, without a border as wide as the scale.  The PSNR of equal images is infinite,
    which is null in the file of --json.
    """
    if json_file is not None:
        options.check_folder_of(json_file)
    upscaler = Upscaler(
        checkpoints.load(weights, normalization=options.parse_normalization(normalization)),
        device=device,
        dtype=options.parse_dtype(dtype),
        backend=backend,
    )
    pairs = find_pairs(hr, lr, [upscaler.scale])
    if json_file is not None:
        images = [path for pair in pairs for path in (pair.hr, pair.lr) if path is not None]
        refuse_inputs([json_file], [*images, Path(weights)])
    progress = Console(stderr=True)
    scores = list(
        track(
            evaluate(pairs, upscaler, y_channel=y_channel, save=save),
            description="evaluating",
            total=len(pairs),
            console=progress,
            disable=not progress.is_terminal,
            transient=True,
        )
    )
    mean_psnr, mean_ssim = (
        sum(getattr(s, key) for s in scores) / len(scores) for key in ("psnr", "ssim")
    )
    table = Table("image", "PSNR [dB]", "SSIM")
    for score in scores:
        table.add_row(score.name, f"{score.psnr:.3f}", f"{score.ssim:.4f}")
    table.add_section()
    table.add_row("mean", f"{mean_psnr:.3f}", f"{mean_ssim:.4f}")
    Console().print(table)
    if json_file is not None:
        report = {
            "psnr": mean_psnr,
            "ssim": mean_ssim,
            "images": [dataclasses.asdict(s) for s in scores],
        }
        with atomic_write(json_file) as temporary:
            temporary.write_text(json_text(report, indent=2) + "\n", "utf-8")
