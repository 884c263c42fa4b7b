"""`espan train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espan.checkpoints import bundled
from espan.cli import options
from espan.errors import EspanError


def command(
    context: typer.Context,
    experiment: Annotated[
        str | None,
        typer.Argument(help="A TOML file, or the name of an experiment (see --list)."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of images, with their subfolders, and packs (espan prepare)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new folder for the run.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Resume the run in this folder with its settings; only --accumulate and "
            "--workers can be changed.",
            metavar="RUN",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Start from these weights: a file or a bundled name.  If the file does not say "
            "how it normalises images, use `espan convert --normalization` first.",
        ),
    ] = None,
    data_lr: Annotated[
        Path | None,
        typer.Option(
            help="LR images for a single folder of data, or a folder of them for each scale "
            "(X2, X3, ...); default: made from HR."
        ),
    ] = None,
    validate: Annotated[
        Path | None, typer.Option(help="A folder of HR images to validate on.")
    ] = None,
    validate_lr: Annotated[
        Path | None,
        typer.Option(
            help="LR images of the --validate folder, laid out as for --data-lr; default: made "
            "from HR."
        ),
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="An image of the data to use for validation, not for training; can be repeated.  "
            "Default without --validate: one image in twenty, 1 to 8."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, bf16, fp64, or on a GPU fp16; default: that of the launcher, else fp32."
        ),
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")
    ] = False,
    accumulate: Annotated[
        int, typer.Option(help="Process the crops of a step in this many parts, to save memory.")
    ] = 1,
    compile_: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile network and loss with torch.compile; not for one GPU."
        ),
    ] = False,
    workers: Annotated[
        int, typer.Option(help="Threads that prepare the crops of the next steps; 0: none.")
    ] = 1,
    about: Annotated[
        str, typer.Option(help="A description of the images, stored with the weights.")
    ] = "",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything, time a few steps of each stage, print a table, and write "
            "nothing.",
        ),
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="List the experiments that come with espan.")
    ] = False,
) -> None:
    """Train a network: run the stages of an experiment on a set of images.

    An experiment is a TOML file: a network and a list of stages.  Under `torchrun -m espan` or
    `accelerate launch -m espan`, all processes train one network.

        espan train smoke photos/ -o run               # comes with espan
        espan train mine.toml train.pack -o run        # your experiment, on a pack
        espan train finetune photos/ -o run --from W   # from weights
        espan train --resume run                       # after an interruption
        espan train mine.toml photos/ --dry-run        # estimate time and memory
    """
    try:
        from espan.training import experiment as experiments
        from espan.training import train as training
        from espan.training.run import Setup
    except ModuleNotFoundError as error:
        raise options.training_missing(error) from error
    if list_:
        options.only(context, "--list", "list_")
        for name, path in experiments.shipped().items():
            text = path.read_text(encoding="utf-8")
            names = experiments.variants(text)
            first = experiments.parse(text, name, names[0] if names else None)
            print(f"{name:18}{first.about}")
            print("".join(f"    {name}:{variant}\n" for variant in names), end="")
        return
    if resume is not None:
        given = options.only(
            context,
            "--resume",
            "resume",
            "accumulate",
            "workers",
            because=", which uses the settings of the run",
        )
        best = training.resume(
            resume,
            accumulate=accumulate if "accumulate" in given else None,
            workers=workers if "workers" in given else None,
        )
        _print_once(best)
        return
    if experiment is None or not data or (output is None and not dry_run):
        raise EspanError(
            "expected: espan train EXPERIMENT DATA... -o RUN, or espan train --resume RUN "
            "(espan train --list: the experiments that come with espan)"
        )
    if weights is not None and weights not in bundled():
        weights = str(Path(weights).absolute())
    setup = Setup(
        data=tuple(data),
        data_lr=data_lr,
        validate=validate,
        validate_lr=validate_lr,
        hold_out=tuple(hold_out or ()),
        weights=weights,
        precision=precision,
        cpu=cpu,
        accumulate=accumulate,
        compile=compile_,
        workers=workers,
        about=about,
    )
    if dry_run:
        from espan.training import dry_run as rehearsal

        rehearsal.dry_run(experiments.read(experiment), setup, folder=output)
        return
    assert output is not None
    _print_once(training.train(output, experiments.read(experiment), setup))


def _print_once(result: Path) -> None:
    """In one of the processes of a launcher."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(result)
