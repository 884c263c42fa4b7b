"""`espan prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from espan.cli import options
from espan.data.pack import Pack
from espan.data.prepare import prepare
from espan.errors import EspanError


def command(
    context: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(help="Folders of photographs; with --check, packs.")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The pack to write.", metavar="PACK")
    ] = None,
    smallest: Annotated[
        int, typer.Option(min=1, help="Leave out images with fewer pixels on a side.")
    ] = 64,
    overwrite: Annotated[bool, typer.Option(help="Replace the pack if it exists.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read packs and compare all pixels with their hashes.")
    ] = False,
) -> None:
    """Decode photographs into a pack, one file for training, with an index and hashes.

    Folders are searched with their subfolders.  Images that are damaged, have an alpha channel or
    are too small are reported and left out.
    """
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
