"""`espan train`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from espan.cli import options
from espan.training.train import TrainConfig, train


def command(
    photos: Annotated[list[Path], typer.Argument(help="Folders of photographs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The .safetensors file to write.")],
    hold_out: Annotated[
        list[str] | None,
        typer.Option(
            help="A file name to choose checkpoints by and not to train on (may be repeated); "
            "default: one in twenty, at most 8."
        ),
    ] = None,
    architecture: Annotated[
        str, typer.Option(help="espan, span, span_c48, or e.g. c32d5k9x4.")
    ] = "espan",
    steps: Annotated[int | None, typer.Option(help="End after this many steps.")] = None,
    minutes: Annotated[float | None, typer.Option(help="End after this time.")] = None,
    batch: Annotated[int, typer.Option(help="Crops per step.")] = TrainConfig.batch,
    patch: Annotated[int, typer.Option(help="Side of the LR crops.")] = TrainConfig.patch,
    lr: Annotated[float, typer.Option(help="Peak learning rate of AdamW.")] = TrainConfig.lr,
    grep: Annotated[
        tuple[int, int], typer.Option(help="The two numbers a and b of GRep.")
    ] = TrainConfig.grep,
    seed: Annotated[int, typer.Option(help="Of weights and crops.")] = TrainConfig.seed,
    bf16: Annotated[bool, typer.Option("--bf16", help="Convolutions in bf16.")] = False,
    device: options.Device = None,
    about: Annotated[
        str, typer.Option(help="Words on the photographs, kept in the file.")
    ] = TrainConfig.about,
) -> None:
    """Train a network with the L1 loss and re-parameterised convolutions.

    --steps, --minutes or both say when to end; the best average so far is written as it goes.
    """
    record = train(
        TrainConfig(
            photos=tuple(photos),
            output=output,
            hold_out=tuple(hold_out or ()),
            architecture=architecture,
            steps=steps,
            minutes=minutes,
            batch=batch,
            patch=patch,
            lr=lr,
            grep=grep,
            seed=seed,
            bf16=bf16,
            device=device,
            about=about,
        )
    )
    print(json.dumps(record, indent=2, ensure_ascii=False))
