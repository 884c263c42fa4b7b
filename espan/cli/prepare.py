"""`espan prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from espan.cli import options
from espan.data.pack import Pack
from espan.data.photographs import read_photograph
from espan.data.prepare import prepare
from espan.data.preview import preview_picture
from espan.errors import EspanError
from espan.files import refuse_inputs
from espan.imaging import Image, write_image


def command(
    context: typer.Context,
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of photographs; with --check, packs; with --preview, a photograph."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The pack, or with --preview the picture, to write."),
    ] = None,
    smallest: Annotated[
        int, typer.Option(min=1, help="Leave out images with fewer pixels on a side.")
    ] = 64,
    overwrite: Annotated[bool, typer.Option(help="Replace the output if it exists.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read packs and compare all pixels with their hashes.")
    ] = False,
    preview: Annotated[
        str | None,
        typer.Option(
            help="Show how the [degrade] table of an experiment, a name or a TOML file, degrades a "
            "photograph.",
            metavar="EXPERIMENT",
        ),
    ] = None,
    scale: Annotated[
        int | None,
        typer.Option(
            min=1, help="Scale of the --preview; default: that of the experiment's last stage."
        ),
    ] = None,
) -> None:
    """Decode photographs into a pack, one file for training, with an index and hashes.

    Folders are searched with their subfolders.  Images that are damaged, have an alpha channel or
    are too small are reported and left out.

        espan prepare photos/ -o photos.pack
        espan prepare --check photos.pack
        espan prepare --preview mine.toml photo.jpg -o grid.png
    """
    if preview is not None:
        options.only(context, "--preview", "sources", "output", "overwrite", "preview", "scale")
        _preview(preview, sources, output, scale, overwrite=overwrite)
        return
    if scale is not None:
        raise EspanError("--scale is for --preview; a pack serves every scale")
    if check:
        options.only(context, "--check", "sources", "check", because=", which writes nothing")
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %  {task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as progress:
        task = progress.add_task("checking" if check else "preparing", note="")

        def each(done: int, total: int, size: int) -> None:
            progress.update(task, completed=done, total=total, note=f"{size / 1e9:.1f} GB")

        if check:
            found = [
                f"{path}: {name}"
                for path in sources
                for name in Pack(path).damaged(lambda done, total: each(done, total, done))
            ]
        elif output is None:
            raise EspanError("--output, the pack to write, is missing")
        else:
            result = prepare(sources, output, smallest=smallest, overwrite=overwrite, each=each)
    if check:
        for line in found:
            console.print(f"damaged: {line}", markup=False)
        if found:
            raise EspanError(
                f"{len(found)} images are damaged; recreate the pack with `espan prepare`"
            )
        print(f"{len(sources)} packs are intact" if len(sources) > 1 else f"{sources[0]} is intact")
        return
    for file in result.skipped:
        console.print(f"skipped: {file.reason}", markup=False)
    print(
        f"{output}  {result.images} images, {result.size / 1e9:.2f} GB"
        + (f", {len(result.skipped)} files skipped" if result.skipped else "")
        + (f", {result.duplicates} duplicates" if result.duplicates else "")
    )


def _preview(
    name: str, sources: list[Path], output: Path | None, scale: int | None, *, overwrite: bool
) -> None:
    try:
        from espan.training import experiment as experiments
    except ModuleNotFoundError as error:
        raise options.training_missing(error) from error
    if len(sources) != 1 or output is None:
        raise EspanError("expected: espan prepare --preview EXPERIMENT PHOTO -o PICTURE")
    if output.exists() and not overwrite:
        raise EspanError(f"{output} exists; --overwrite replaces it")
    refuse_inputs([output], sources)
    experiment = experiments.read(name)
    if experiment.degrade is None:
        raise EspanError(
            f"{name} has no [degrade] table: it makes LR images as MATLAB's imresize does, and "
            "there is nothing to show.  espan_x4_photo is an experiment that has one"
        )
    scale = scale or experiment.scale
    if scale is None:
        raise EspanError(
            f"{name} takes its scale from the weights that it starts from; give --scale"
        )
    write_image(
        output, Image(preview_picture(read_photograph(sources[0]), experiment.degrade, scale))
    )
    print(output)
