"""espan in ComfyUI: more models for "Load Upscale Model", and the node "Upscale (espan)"."""

from __future__ import annotations

import os
from functools import lru_cache

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from torch import Tensor

import espan
import espan.spandrel  # the stock nodes then load these models, too
from espan import checkpoints
from espan.alpha import extend_colour
from espan.errors import EspanError
from espan.models import Architecture
from espan.tiling import TILE, Tile, tiles

PRECISIONS = {
    "auto": None,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
}
# The most that PyTorch's convolutions take for each LR pixel of a call (espan/tiling.py).
BYTES_PER_PIXEL = 1300


class Upscale(io.ComfyNode):
    """Upscales images: fp16 on a GPU, tiles without seams, small images several at a time."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        weights = [*checkpoints.bundled(), *folder_paths.get_filename_list("upscale_models")]
        return io.Schema(
            node_id="EspanUpscale",
            display_name="Upscale (espan)",
            category="image/upscaling",
            description="Upscale with SPAN or ESPAN on espan's kernels, in tiles without seams.",
            inputs=[
                io.Image.Input("image"),
                io.Combo.Input("weights", options=weights, default=checkpoints.DEFAULT),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="auto",
                    tooltip="auto: fp16 on a GPU, fp32 on a CPU",
                ),
                io.Int.Input(
                    "tile",
                    default=TILE,
                    min=64,
                    max=4096,
                    step=64,
                    tooltip="side of the tiles in pixels of the input; less takes less memory",
                ),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, weights: str, precision: str, tile: int) -> io.NodeOutput:
        """(B, H, W, C) in 0-1, with 3 channels or 4 (alpha) -> (B, s*H, s*W, C), likewise."""
        if image.ndim != 4 or image.shape[3] not in (3, 4) or 0 in image.shape:
            raise EspanError(
                f"got an image of shape {tuple(image.shape)}; expected (B, H, W, C) with C 3 or 4"
            )
        device = comfy.model_management.get_torch_device()
        if device.type not in ("cpu", "cuda"):
            device = torch.device("cpu")  # espan has no kernels for others
        dtype = PRECISIONS[precision]
        if precision == "auto" and device.type == "cuda":
            dtype = torch.float16
        upscaler, architecture = _upscaler(*_file(weights), device, dtype)
        batch, height, width, channels = image.shape
        alpha = image[..., 3:]
        opaque = (alpha == alpha[:, :1, :1]).flatten(1).all(1)  # or equally transparent everywhere
        parts = [slice(0, 3)]
        if channels == 4:
            image = torch.stack([extend_colour(each) for each in image])
            parts += [slice(3, 4)] * (not opaque.all())
        together = max(1, tile * tile // (height * width))
        batches = [slice(i, i + together) for i in range(0, batch, together)]
        halo = architecture.receptive_radius
        places = list(tiles(height, width, tile, halo, architecture.unshuffle))
        comfy.model_management.free_memory(BYTES_PER_PIXEL * (tile + 2 * halo) ** 2, device)
        progress = comfy.utils.ProgressBar(len(parts) * len(batches) * len(places))
        s = upscaler.scale
        out = torch.empty(
            (batch, s * height, s * width, channels),
            dtype=image.dtype,
            device=comfy.model_management.intermediate_device(),
        )
        for part in parts:
            for some in batches:
                for place in places:
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    _enlarge(upscaler, image[some, ..., part], out[some, ..., part], place)
                    progress.update(1)
        if channels == 4:
            out[opaque, ..., 3:] = alpha[opaque, :1, :1].to(out.device)
        return io.NodeOutput(out)


def _enlarge(upscaler: espan.Upscaler, images: Tensor, out: Tensor, tile: Tile) -> None:
    """Compute one tile of (n, H, W, c) and put it into (n, s*H, s*W, c)."""
    (y, x), s = tile, upscaler.scale
    read = images[:, y.read_start : y.read_stop, x.read_start : x.read_stop]
    result = upscaler(read.permute(0, 3, 1, 2).to(upscaler.device)).permute(0, 2, 3, 1)
    top, left = s * (y.start - y.read_start), s * (x.start - x.read_start)
    target = out[:, s * y.start : s * y.stop, s * x.start : s * x.stop]
    target.copy_(result[:, top : top + target.shape[1], left : left + target.shape[2]])


def _file(weights: str) -> tuple[str, float]:
    """The path of bundled or other weights, and when the file was changed."""
    path = checkpoints.bundled().get(weights)
    found = str(path or folder_paths.get_full_path_or_raise("upscale_models", weights))
    return found, os.stat(found).st_mtime


@lru_cache(maxsize=4)
def _upscaler(
    path: str, changed: float, device: torch.device, dtype: torch.dtype | None
) -> tuple[espan.Upscaler, Architecture]:
    """An upscaler without tiles, and the architecture of its network."""
    network = espan.load(path)
    upscaler = espan.Upscaler(network, device=device, dtype=dtype, tile=None)
    return upscaler, network.architecture


class Extension(ComfyExtension):
    """What ComfyUI asks for the nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Upscale]


async def comfy_entrypoint() -> Extension:
    """Called by ComfyUI when it loads the folder."""
    return Extension()
