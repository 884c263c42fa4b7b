"""`espan video`."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from espan import checkpoints
from espan.cli import options
from espan.errors import EspanError, out_of_memory
from espan.extras import install_command
from espan.files import refuse_inputs
from espan.fused import FusedNetwork

if TYPE_CHECKING:
    from espan.video import run


def command(
    source: Annotated[Path, typer.Argument(help="A video file.", metavar="IN")],
    target: Annotated[
        Path, typer.Argument(help="A .mkv, .mp4, .m4v, .mov or .webm file.", metavar="OUT")
    ],
    weights: options.WeightsOrChoice = None,
    scale: options.Scale = None,
    photo: options.Photo = False,
    crf: Annotated[
        float | None,
        typer.Option(
            help="Quality, lower is better, by the scale of the encoder; default: 18 for libx264, "
            "20 for libx265, 28 for libsvtav1, 24 for libvpx-vp9, 20 for h264_nvenc, 22 for "
            "hevc_nvenc, 28 for av1_nvenc.",
            metavar="NUMBER",
        ),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="An encoder of FFmpeg: libx264, libx265, libsvtav1, libvpx-vp9, ffv1, ...; "
            "default: libx264 for 8 bits, libx265 for more; in WebM libvpx-vp9 for 8 bits, "
            "libsvtav1 for more.",
            metavar="NAME",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Frames computed at a time; default: 4 on a GPU, 1 on a CPU.", metavar="NUMBER"
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="Begin here: 75.5, 1:15.5 or 0:01:15.5.", metavar="TIME"),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", help="Stop before this time, written as for --from.", metavar="TIME"),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an interrupted run that was started with the same options."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    backend: options.Backend = "auto",
    normalization: options.Norm = "auto",
    tile: Annotated[
        str, typer.Option(help="Side of the tiles in LR pixels, auto or off.")
    ] = "auto",
) -> None:
    """Upscale a video.

    Audio, subtitles, chapters, attachments and metadata are copied, and every frame keeps its time.
    Finished segments are kept in OUT.segments until OUT is complete, so that an interrupted run is
    resumable.
    """
    try:
        from espan.video import run
        from espan.video.times import parse_time
    except ModuleNotFoundError as error:
        raise EspanError(
            f"video needs an additional package ({error}); install it with "
            f"{install_command('video')}, with Python 3.11 or later"
        ) from error

    weights = options.chosen_weights(weights, scale, photo)
    wanted = run.Options(
        codec=codec,
        crf=crf,
        start=None if start is None else parse_time(start, "--from"),
        end=None if end is None else parse_time(end, "--to"),
        batch=batch,
        resume=resume,
        overwrite=overwrite,
    )
    run.check_target(source, target, wanted)
    refuse_inputs([target], [options.weights_file(weights)])
    network = FusedNetwork(
        checkpoints.load(weights, normalization=options.parse_normalization(normalization)),
        device=options.parse_device(device),
        dtype=options.parse_dtype(dtype),
        backend=backend,
    )
    if dtype == "auto" and network.device.type == "cuda":
        # fp16 for frames of more than 8 bits as well: its 11 bits are enough for the usual 10.
        given = {**network.options, "dtype": torch.float16}
        network = FusedNetwork(network.plain, **given)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    started = time.perf_counter()
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("upscaling", total=None)

        def note(text: str) -> None:
            console.print(f"espan: note: {source}: {text}", style="yellow", markup=False)

        def progress(state: run.Progress) -> None:
            total = None if state.total is None else max(state.total, state.done)
            new = state.done - state.resumed
            bar.update(task, completed=state.done, total=total, new=new)

        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: note(str(message))
            try:
                done = run.upscale_video(
                    source,
                    target,
                    network,
                    wanted,
                    tile=options.parse_tile(tile),
                    note=note,
                    progress=progress,
                )
            except KeyboardInterrupt:
                bar.stop()
                _interrupted(console, target)
                raise
            except Exception as error:
                if not out_of_memory(error):
                    raise
                raise EspanError(
                    f"{source}: not enough memory; try a smaller --batch or --tile"
                ) from error
    seconds = time.perf_counter() - started
    print(
        f"{target}  {done.width}x{done.height}  {done.frames} frames in {seconds:.2f} s "
        f"({done.codec}; {network.backend} on {network.device})"
    )


class _Rate(ProgressColumn):
    """Frames per second of this run, without those of an earlier one."""

    def render(self, task: Task) -> Text:
        seconds, frames = task.elapsed, task.fields.get("new", 0)
        return Text(f"{frames / seconds:.2f} fps" if seconds and frames else "")


def _interrupted(console: Console, target: Path) -> None:
    folder = target.with_name(f"{target.name}.segments")
    if folder.is_dir():
        console.print(
            f"espan: the segments that are finished are in {folder}, and --resume continues",
            markup=False,
        )
