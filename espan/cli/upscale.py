"""`espan upscale`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from espan import batch, checkpoints
from espan.cli import options
from espan.files import json_text, refuse_inputs
from espan.upscaling import Upscaler


def command(
    # Without `readable`, which would end the run: a file that cannot be read is a single failure.
    inputs: Annotated[list[Path], typer.Argument(help="Image files and folders.", readable=False)],
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", help="A file for one input file, else a folder.", readable=False
        ),
    ],
    weights: options.WeightsOrChoice = None,
    scale: options.Scale = None,
    photo: options.Photo = False,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    normalization: options.Norm = "auto",
    tile: Annotated[
        str, typer.Option(help="Side of the tiles in LR pixels, auto or off.")
    ] = "auto",
    suffix: Annotated[
        str, typer.Option(help="Added to the names of the results, before the file suffix.")
    ] = "",
    format: Annotated[
        str | None,
        typer.Option(
            help="png, jpg, webp, tif or bmp; default: that of each input.", metavar="FORMAT"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace results that exist.")] = False,
    as_json: options.JsonOut = False,
) -> None:
    """Upscale images.

    Folders are searched with their subfolders, and their tree is kept.  Existing results are
    skipped, so that an interrupted run can be resumed.  Files that fail are listed at the end, and
    the exit status is 1.  Under torchrun, each process upscales its share of the files.

    Where --format would give several images the same name, as a.png, a.jpg and a.webp, they become
    a.png, a_jpg.png and a_webp.png.
    """
    weights = options.chosen_weights(weights, scale, photo)
    rank, processes = batch.share_of_process()
    jobs = batch.plan(inputs, output, suffix=suffix, format=format, overwrite=overwrite)
    refuse_inputs((job.target for job in jobs), [options.weights_file(weights)])
    jobs = jobs[rank::processes]
    upscaler = Upscaler(
        checkpoints.load(weights, normalization=options.parse_normalization(normalization)),
        device=options.parse_device(device),
        dtype=options.parse_dtype(dtype),
        backend=backend,
        tile=options.parse_tile(tile),
    )
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    started = time.perf_counter()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=as_json or not console.is_terminal,
    ) as progress:
        task = progress.add_task("upscaling", total=len(jobs))

        def done(outcome: batch.Outcome) -> None:
            progress.advance(task)
            for note in outcome.notes:
                _print(console, "yellow", "note", f"{outcome.job.source}: {note}")
            if outcome.error is not None:
                source = str(outcome.job.source)
                named = outcome.error if source in outcome.error else f"{source}: {outcome.error}"
                _print(console, "red", "failed", named)

        try:
            outcomes = batch.run_all(jobs, upscaler, overwrite=overwrite, done=done)
        except (KeyboardInterrupt, SystemExit) as stop:
            progress.stop()
            _print(console, "yellow", "interrupted", "the same command continues")
            sys.stderr.flush()
            # Python would wait for the network's thread, which may take minutes.
            os._exit(130 if isinstance(stop, KeyboardInterrupt) else 143)
    failed = [o for o in outcomes if o.error is not None]
    skipped = [o for o in outcomes if o.skipped]
    if as_json:
        report = _report(outcomes, upscaler)
        if processes > 1:
            report["share"] = [rank + 1, processes]
        print(json_text(report, indent=2))
    else:
        written = [o for o in outcomes if o.error is None and not o.skipped]
        if len(written) == 1:
            print(f"{written[0].job.target}  {written[0].width}x{written[0].height}", end="  ")
        print(
            f"{len(written)} upscaled in {time.perf_counter() - started:.2f} s "
            f"({upscaler.backend} on {upscaler.device})"
            + (f", share {rank + 1} of {processes}" if processes > 1 else "")
            + (f", {len(skipped)} exist already (--overwrite replaces them)" if skipped else "")
        )
        if len(failed) > 1:
            print(f"{len(failed)} failed:", file=sys.stderr)
            for outcome in failed:
                print(f"  {outcome.job.source}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def _print(console: Console, colour: str, word: str, text: str) -> None:
    console.print(f"espan: {word}: {text}", style=colour, markup=False)


def _report(outcomes: list[batch.Outcome], upscaler: Upscaler) -> dict[str, object]:
    return {
        "backend": upscaler.backend,
        "device": str(upscaler.device),
        "scale": upscaler.scale,
        "images": [
            {
                "input": str(o.job.source),
                "output": str(o.job.target),
                "status": "failed" if o.error else "skipped" if o.skipped else "upscaled",
                "error": o.error,
                "width": o.width,
                "height": o.height,
                "seconds": round(o.seconds, 4),
                "notes": list(o.notes),
            }
            for o in outcomes
        ],
    }
