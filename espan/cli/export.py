"""`espan export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from espan import checkpoints, export
from espan.cli import options
from espan.errors import EspanError
from espan.files import refuse_inputs

_DTYPES = {name: dtype for dtype, name in export.DTYPES.items()}


def command(
    context: typer.Context,
    weights: Annotated[str, typer.Argument(help="A weight file, or the name of bundled weights.")],
    output: Annotated[
        Path,
        typer.Argument(
            help="A file that ends in .onnx, .pt2 or .pth, or a folder for an .onnx file with the "
            "name that is usual for TensorRT; it is created if it does not exist.",
            metavar="OUT",
        ),
    ],
    dtype: Annotated[
        str, typer.Option(help="Data type of weights and activations: fp32 or fp16.")
    ] = "fp32",
    image_dtype: Annotated[
        str | None,
        typer.Option(
            help="Data type of input and output images: fp32 or fp16; default: that of --dtype.",
            metavar="NAME",
        ),
    ] = None,
    dynamic_batch: Annotated[
        bool,
        typer.Option(
            "--dynamic-batch", help="Accept any number of images in a call instead of one."
        ),
    ] = False,
    opset: Annotated[
        int | None,
        typer.Option(help="ONNX opset version: 18, 19 or 20; default: 20.", metavar="NUMBER"),
    ] = None,
    normalization: options.Norm = "auto",
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Write a network for other programs: ONNX, PyTorch's torch.export (.pt2), or .pth.

    The network takes RGB images (N, 3, height, width) in 0-1 of any size, and returns them enlarged
    and not clamped.  The weights are merged.  ONNX Runtime, TensorRT and ncnn read ONNX.  A .pth
    file has the layout of the official files, for programs that use spandrel.
    """
    kind = "folder" if output.is_dir() or not output.suffix else output.suffix
    of_weights = _parse(dtype, "--dtype")
    of_images = of_weights if image_dtype is None else _parse(image_dtype, "--image-dtype")
    if kind in (".pt2", ".pth"):
        allowed = {"weights", "output", "normalization", "overwrite"}
        if kind == ".pt2":
            allowed |= {"dtype", "image_dtype", "dynamic_batch"}
        options.only(context, f"a {kind} file", *allowed)
    opset = export.OPSETS[-1] if opset is None else opset
    if opset not in export.OPSETS:
        raise EspanError(f"--opset {opset}: expected {', '.join(map(str, export.OPSETS))}")
    if kind not in (".onnx", ".pt2", ".pth", "folder"):
        raise EspanError(
            f"{output}: the name must end in .onnx, .pt2 or .pth, or have no suffix, for a folder"
        )
    if kind != "folder":
        _check(output, weights, overwrite)
    network = checkpoints.load(weights, normalization=options.parse_normalization(normalization))
    if kind == "folder":
        output /= export.onnx_name(
            Path(weights).stem,
            scale=network.scale,
            dtype=of_weights,
            image_dtype=of_images,
            dynamic_batch=dynamic_batch,
            opset=opset,
        )
        output.parent.mkdir(exist_ok=True)
        _check(output, weights, overwrite)
    # The bundled weights are part of espan.
    licence = "Apache-2.0" if weights in checkpoints.bundled() else "unknown"
    common: dict[str, Any] = {
        "dtype": of_weights,
        "image_dtype": of_images,
        "dynamic_batch": dynamic_batch,
        "licence": str(network.record.get("licence", licence)),
    }
    if kind == ".pth":
        export.to_pth(network, output)
    elif kind == ".pt2":
        export.to_pt2(network, output, **common)
    else:
        export.to_onnx(network, output, opset=opset, **common)
    print(output)


def _parse(name: str, option: str) -> torch.dtype:
    if name not in _DTYPES:
        raise EspanError(f"{option} {name!r}: expected {' or '.join(_DTYPES)}")
    return _DTYPES[name]


def _check(output: Path, weights: str, overwrite: bool) -> None:
    options.check_folder_of(output)
    refuse_inputs([output], [options.weights_file(weights)])
    if output.exists() and not overwrite:
        raise EspanError(f"{output} exists; --overwrite replaces it")
