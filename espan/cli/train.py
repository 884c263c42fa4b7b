"""`espan train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espan.checkpoints import bundled
from espan.errors import EspanError


def command(
    experiment: Annotated[
        str | None,
        typer.Argument(help="A TOML file, or the name of one that comes with espan (--list)."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of images, with all below, and packs (espan prepare)."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder of the run, a new one.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Go on with the run in this folder; nothing else is given.", metavar="RUN"
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--from", help="Start from these weights: a file, or a bundled name."),
    ] = None,
    data_lr: Annotated[
        Path | None,
        typer.Option(help="LR images of the one folder of data; default: made from HR."),
    ] = None,
    validate: Annotated[
        Path | None, typer.Option(help="A folder of HR images to measure on.")
    ] = None,
    validate_lr: Annotated[
        Path | None, typer.Option(help="Their LR images, by name; default: made from HR.")
    ] = None,
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an image in the data to measure on, not to train on; may be repeated.  "
            "Without these and --validate: one in twenty, but 1 to 8."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, bf16, fp16 or fp64; default: what the launcher says, else fp32."),
    ] = None,
    cpu: Annotated[
        bool, typer.Option("--cpu", help="Train on the CPU even if there is a GPU.")
    ] = False,
    accumulate: Annotated[
        int, typer.Option(help="Take the crops of a step in so many parts, to save memory.")
    ] = 1,
    workers: Annotated[
        int, typer.Option(help="Threads that make the crops of the steps to come; 0: none.")
    ] = 1,
    about: Annotated[
        str, typer.Option(help="Words on the images, kept in the weights' file.")
    ] = "",
    list_: Annotated[
        bool, typer.Option("--list", help="List the experiments that come with espan.")
    ] = False,
) -> None:
    r"""Train a network: an experiment's stages, on images, into the folder of a run.

    \b
    espan train smoke photos/ -o run               a shipped experiment
    espan train mine.toml train.pack -o run        one's own, on a pack
    espan train finetune photos/ -o run --from W   go on from weights
    espan train --resume run                       after any kind of stop

    Under `torchrun -m espan` or `accelerate launch -m espan` it uses all their processes.
    """
    try:
        from espan.training import experiment as experiments
        from espan.training.run import Setup
        from espan.training.train import resume as go_on
        from espan.training.train import train
    except ImportError as error:
        raise EspanError(
            f'training needs what `pip install "espan[train]"` installs: {error}'
        ) from error
    if list_:
        for name, path in experiments.shipped().items():
            text = path.read_text(encoding="utf-8")
            names = experiments.variants(text)
            first = experiments.parse(text, name, names[0] if names else None)
            print(f"{name:18}{first.about}")
            print("".join(f"    {name}:{variant}\n" for variant in names), end="")
        return
    if resume is not None:
        if experiment or data or output or weights:
            raise EspanError("--resume RUN goes by what the run was begun with; give nothing else")
        print(go_on(resume))
        return
    if experiment is None or not data or output is None:
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
        workers=workers,
        about=about,
    )
    print(train(output, experiments.read(experiment), setup))
