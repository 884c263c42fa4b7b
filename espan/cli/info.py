"""`espan info`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from espan import checkpoints
from espan.cli import options
from espan.errors import EspanError
from espan.files import json_text
from espan.models import NAMED, Architecture, architecture_from_name, complexity


def command(
    network: Annotated[
        str,
        typer.Argument(
            help=f"A weight file, bundled weights, an architecture ({', '.join(NAMED)}), or the "
            "paper's notation, e.g. c32d5k9x4."
        ),
    ] = options.DEFAULT_WEIGHTS,
    size: Annotated[
        str,
        typer.Option(help="Input size for the counts, height first: HEIGHTxWIDTH.", metavar="HxW"),
    ] = "256x256",
    as_json: options.JsonOut = False,
) -> None:
    """Describe a network: architecture, parameters, multiply-adds, receptive radius, origin."""
    height, width = _size(size)
    architecture, record = _network(network)
    counts = complexity(architecture, height, width)
    if as_json:
        about = {"architecture": architecture.to_dict(), "record": record}
        print(json_text(about | dataclasses.asdict(counts), indent=2))
        return
    table = Table(title=escape(network), show_header=False, title_justify="left")
    for key, value in _rows(architecture):
        table.add_row(key, value)
    table.add_row("parameters", f"{counts.parameters:,}")
    table.add_row(f"GMACs at {height}x{width}", f"{counts.macs / 1e9:.2f}")
    table.add_row(f"activations at {height}x{width}", f"{counts.activations / 1e6:.2f} M")
    table.add_row("receptive radius", f"{counts.receptive_radius} LR pixels")
    for key, value in record.items():
        if value is not None:
            table.add_row(escape(f"record: {key}"), escape(_text(value)))
    Console().print(table)


def _network(name: str) -> tuple[Architecture, dict[str, Any]]:
    """The architecture and the record of weights, or of an architecture's name."""
    path = Path(name)
    if not path.is_file() and name not in checkpoints.bundled():
        try:
            return architecture_from_name(name), {}
        except EspanError as error:
            if not (path.exists() or path.suffix):
                names = ", ".join(checkpoints.bundled())
                raise EspanError(
                    f"{error}; or a weight file, or bundled weights: {names}"
                ) from error
    network = checkpoints.load(name)
    return network.architecture, network.record


def _rows(architecture: Architecture) -> list[tuple[str, str]]:
    norm: Any = architecture.normalization
    return [
        ("scale", f"x{architecture.scale}"),
        ("channels", str(architecture.channels)),
        ("convolutions per block", " ".join(map(str, architecture.convs))),
        ("activation", architecture.activation),
        ("gate", architecture.gate),
        ("3x3 convolutions of blocks", "with bias" if architecture.bias else "without bias"),
        ("stem", _stem(architecture)),
        ("tail", architecture.tail),
        ("concat uses the last block's", architecture.concat_last),
        ("normalisation", "none" if norm is None else f"(x - {norm.mean}) * {norm.img_range:g}"),
    ]


def _text(value: object) -> str:
    """A value of a record."""
    if isinstance(value, list) and not any(isinstance(item, dict) for item in value):
        return ", ".join(map(str, value))
    return json_text(value, indent=2) if isinstance(value, (dict, list)) else str(value)


def _stem(architecture: Architecture) -> str:
    if architecture.has_near:
        return f"the first {architecture.stem.replace('_', ' ')}, beside a depthwise 3x3"
    u, kernel = architecture.unshuffle, architecture.head_kernel
    return f"{kernel}x{kernel} head" + (f" of {u}x{u} pixels unshuffled" if u > 1 else "")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (text.isascii() and height.isdigit() and width.isdigit() and int(height) * int(width)):
        raise EspanError(f"--size {text!r}: expected HEIGHTxWIDTH, e.g. 256x256")
    return int(height), int(width)
