"""Options shared by several commands, and parsing their values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import torch
import typer

from espan import checkpoints
from espan.errors import EspanError
from espan.extras import install_command
from espan.fused import default_device
from espan.models import SPAN_NORMALIZATION, Normalization
from espan.upscaling import TileOption

Weights = Annotated[
    str, typer.Option(help="A weight file, or the name of bundled weights.", show_default=True)
]
WeightsOrChoice = Annotated[
    str | None,
    typer.Option(
        help="A weight file, or the name of bundled weights; default: those that --scale and "
        "--photo choose."
    ),
]
Scale = Annotated[
    int | None, typer.Option(help="Use the bundled weights for this scale: 2, 3 or 4; default: 4.")
]
Photo = Annotated[
    bool,
    typer.Option(
        "--photo", help="Choose the bundled weights for photographs with JPEG artefacts and noise."
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda, cuda:1, ...; default: the GPU if there is one.  Under torchrun, cuda "
        "means the GPU of each process.",
        metavar="NAME",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="fp32, fp16, bf16 or auto: on a GPU fp16 for 8-bit images and for video, else fp32; "
        "on a CPU fp32 (with AMX, 17 bits of precision for 8-bit images)."
    ),
]
Backend = Annotated[str, typer.Option(help="auto, cuda, triton, cpu or reference.")]
Norm = Annotated[
    str,
    typer.Option(
        help="Input normalisation: auto (what the file says), none, span (mean 0.4488 0.4371 "
        "0.4040, range 255), or MEAN_R,MEAN_G,MEAN_B,RANGE, e.g. 0.5,0.5,0.5,1."
    ),
]
JsonOut = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DEFAULT_WEIGHTS = checkpoints.DEFAULT

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_device(name: str | None) -> torch.device | str | None:
    """The device of an `Upscaler`, from a --device option."""
    if name == "cuda" and torch.cuda.is_available():
        return default_device()  # under torchrun, not GPU 0 for every process
    return name


def parse_dtype(name: str) -> torch.dtype | None:
    """The torch dtype of a --dtype option; None for auto."""
    if name == "auto":
        return None
    if name not in _DTYPES:
        raise EspanError(f"unknown dtype {name!r}; choose auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def parse_normalization(text: str) -> Normalization | str | None:
    """What `espan.load` takes, from a --normalization option."""
    if text == "auto":
        return "auto"
    if text == "none":
        return None
    if text == "span":
        return SPAN_NORMALIZATION
    try:
        red, green, blue, img_range = numbers = [float(part) for part in text.split(",")]
        if not (all(math.isfinite(number) for number in numbers) and img_range > 0):
            raise ValueError
    except ValueError:
        raise EspanError(
            f"--normalization {text!r}: expected auto, none, span, or four numbers separated by "
            "commas (the mean of R, G and B, and the range)"
        ) from None
    return Normalization((red, green, blue), img_range)


def parse_tile(text: str) -> TileOption:
    """The tile of an `Upscaler`, from a --tile option."""
    if text == "auto":
        return "auto"
    if text == "off":
        return None
    if not (text.isascii() and text.isdigit()):
        raise EspanError(f"--tile {text!r}: expected auto, off or a number of LR pixels")
    return int(text)


def chosen_weights(weights: str | None, scale: int | None, photo: bool) -> str:
    """The --weights option, or the name of the bundled weights that --scale and --photo choose."""
    if weights is not None:
        if scale is not None or photo:
            raise EspanError(
                "--scale and --photo choose bundled weights, and cannot be combined with --weights"
            )
        return weights
    name = f"espan_x{4 if scale is None else scale}{'_photo' if photo else ''}"
    if name not in checkpoints.bundled():
        raise EspanError(
            f"there are no bundled weights {name}; there are {', '.join(checkpoints.bundled())}"
        )
    return name


def weights_file(weights: str) -> Path:
    """The file of a --weights option, which need not exist."""
    return checkpoints.bundled().get(weights, Path(weights))


def check_folder_of(path: Path) -> None:
    """Raise EspanError if the folder that a file will be written to does not exist."""
    if not path.parent.is_dir():
        raise EspanError(f"{path}: the folder {path.parent} does not exist")


def only(context: typer.Context, option: str, *allowed: str, because: str = "") -> list[str]:
    """The names of the given parameters.  Raises EspanError if any is not in `allowed`.

    Args:
        context: the context of the command.
        option: the option with which the others have no effect.
        allowed: names of the parameters that may be given.
        because: added to the message.
    """
    given = {
        parameter.name: max(parameter.opts, key=len)
        if parameter.opts[0][0] == "-"
        else parameter.name.upper()
        for parameter in context.command.params
        if parameter.name is not None
        and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }
    if others := [text for name, text in given.items() if name not in allowed]:
        raise EspanError(f"{', '.join(others)} cannot be combined with {option}{because}")
    return list(given)


def training_missing(error: ModuleNotFoundError) -> EspanError:
    """The error for a package of the extra "train" that is not installed."""
    return EspanError(
        f"training needs additional packages ({error}); install them with "
        + install_command("train")
    )
