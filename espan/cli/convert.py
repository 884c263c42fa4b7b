"""`espan convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espan import checkpoints
from espan.cli import options
from espan.errors import EspanError
from espan.files import refuse_inputs


def command(
    source: Annotated[str, typer.Argument(help="Weights in any layout that espan reads.")],
    target: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    normalization: options.Norm = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace the target if it exists.")] = False,
) -> None:
    """Convert weights to espan's format: merged, fp32, self-describing safetensors."""
    if target.suffix != ".safetensors":
        raise EspanError(f"{target}: the name must end in .safetensors")
    options.check_folder_of(target)
    refuse_inputs([target], [options.weights_file(source)])
    if target.exists() and not overwrite:
        raise EspanError(f"{target} exists; --overwrite replaces it")
    network = checkpoints.load(source, normalization=options.parse_normalization(normalization))
    record = {"converted from": Path(source).name, **network.record}
    checkpoints.save(network, target, record=record)
    print(target)
