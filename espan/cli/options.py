"""Options that several commands share, and reading their values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from espan.checkpoints import DEFAULT
from espan.errors import EspanError
from espan.models import SPAN_NORMALIZATION, Normalization
from espan.upscaling import TileOption

Weights = Annotated[
    str, typer.Option(help="A weight file, or the name of bundled weights.", show_default=True)
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, ...; default: the GPU if there is one.", metavar="NAME"),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="fp32, fp16 or bf16; default: fp16 on a GPU, fp32 on the CPU."),
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
DEFAULT_WEIGHTS = DEFAULT

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of a --dtype option."""
    if name is None:
        return None
    if name not in _DTYPES:
        raise EspanError(f"unknown dtype {name!r}; known are {', '.join(_DTYPES)}")
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
        red, green, blue, img_range = (float(part) for part in text.split(","))
    except ValueError:
        raise EspanError(
            f"--normalization {text!r}: expected auto, none, span, or four numbers with commas "
            "between (mean of R, G, B in 0-1, and the range)"
        ) from None
    return Normalization((red, green, blue), img_range)


def parse_tile(text: str) -> TileOption:
    """The tile of an `Upscaler`, from a --tile option."""
    if text == "auto":
        return "auto"
    if text in ("off", "none", "0"):
        return None
    if not text.isdigit():
        raise EspanError(f"--tile {text!r}: expected auto, off or a number of LR pixels")
    return int(text)


def check_folder_of(path: Path) -> None:
    """The folder that a file shall be written into must be there before the work begins."""
    if not path.parent.is_dir():
        raise EspanError(f"{path}: the folder {path.parent} does not exist")
