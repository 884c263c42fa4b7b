"""`espan evaluate`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from espan import checkpoints
from espan._version import __version__
from espan.cli import options
from espan.errors import EspanError
from espan.evaluation.evaluate import Failure, Score, evaluate, find_pairs
from espan.files import json_text
from espan.upscaling import Upscaler


def command(
    hr: Annotated[Path, typer.Option(help="Folder of ground-truth images.")],
    lr: Annotated[
        Path | None,
        typer.Option(
            help="Folder of LR images, named a.png or ax4.png for the HR image a.png; default: "
            "made from HR as MATLAB's imresize does."
        ),
    ] = None,
    weights: options.Weights = options.DEFAULT_WEIGHTS,
    y_channel: Annotated[
        bool, typer.Option("--y", help="Compare the luma (BT.601) instead of RGB.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the results to this folder, as PNG.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="With --save: replace results that exist.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = "fp32",
    backend: options.Backend = "auto",
    normalization: options.Norm = "auto",
    as_json: options.JsonOut = False,
) -> None:
    """Measure PSNR and SSIM over a folder by the protocol of the NTIRE challenge.

    Images are compared in RGB, excluding a border as wide as the scale.  Images that cannot be
    scored are listed at the end and left out of the means, and the exit status is 1.  The PSNR of
    identical images is infinite (null in JSON).
    """
    if overwrite and save is None:
        raise EspanError("--overwrite has no effect without --save")
    upscaler = Upscaler(
        checkpoints.load(weights, normalization=options.parse_normalization(normalization)),
        device=options.parse_device(device),
        dtype=options.parse_dtype(dtype),
        backend=backend,
    )
    pairs = find_pairs(hr, lr, [upscaler.scale])
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    results = list(
        track(
            evaluate(
                pairs,
                upscaler,
                y_channel=y_channel,
                save=save,
                overwrite=overwrite,
                used=[options.weights_file(weights)],
            ),
            description="evaluating",
            total=len(pairs),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
    )
    scores = [result for result in results if isinstance(result, Score)]
    failures = [result for result in results if isinstance(result, Failure)]
    mean_psnr, mean_ssim = (
        sum(getattr(s, key) for s in scores) / len(scores) if scores else math.nan
        for key in ("psnr", "ssim")
    )
    if as_json:
        report = {
            "weights": weights,
            "scale": upscaler.scale,
            "compared": "luma" if y_channel else "RGB",
            "border": upscaler.scale,
            "lr": "given" if lr is not None else "imresize",
            "dtype": dtype,
            "backend": upscaler.backend,
            "device": str(upscaler.device),
            "espan": __version__,
            "psnr": mean_psnr,
            "ssim": mean_ssim,
            "images": [dataclasses.asdict(s) for s in scores],
            "failed": [dataclasses.asdict(f) for f in failures],
        }
        print(json_text(report, indent=2))
    elif scores:
        of_luma = " of the luma" if y_channel else ""
        table = Table("image", rf"PSNR{of_luma} \[dB]", f"SSIM{of_luma}")
        for score in scores:
            table.add_row(escape(score.name), f"{score.psnr:.3f}", f"{score.ssim:.4f}")
        table.add_section()
        count = f" of {len(scores)} of {len(results)}" if failures else ""
        table.add_row(f"mean{count}", f"{mean_psnr:.3f}", f"{mean_ssim:.4f}")
        Console().print(table)
    for failure in failures:
        console.print(f"espan: failed: {failure.error}", style="red", markup=False)
    if failures:
        raise typer.Exit(1)
