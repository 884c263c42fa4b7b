"""espan as a VapourSynth filter: `espan.vapoursynth.upscale(clip)`."""

from __future__ import annotations

import contextlib
import os
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor

from espan import checkpoints
from espan.errors import EspanError
from espan.extras import install_command
from espan.models import Network
from espan.upscaling import TileOption, Upscaler

try:
    import vapoursynth as vs
except ImportError as error:
    raise ImportError(
        f"espan.vapoursynth needs VapourSynth ({error}); install it with "
        f"{install_command('vapoursynth')}, with Python 3.12 or later"
    ) from error

# The dtype of the network for each format; None: as for any 8-bit image.
_DTYPES = {vs.RGB24: None, vs.RGBH: torch.float16, vs.RGBS: torch.float32}


def upscale(
    clip: vs.VideoNode,
    weights: str | os.PathLike[str] | Network = checkpoints.DEFAULT,
    device_index: int = 0,
    num_streams: int = 1,
    tile: TileOption = "auto",
) -> vs.VideoNode:
    """Upscale each frame of a clip; frame rate, length and frame properties stay the same.

    Args:
        clip: RGBH, computed in fp16; RGBS, in fp32; or RGB24, in fp16 on a GPU and fp32 on a CPU.
            Floating-point values lie in 0-1.
        weights: a file, the name of bundled weights, or a plain `Network`.
        device_index: of the GPU.  Where torch sees none, the CPU is used.
        num_streams: how many frames are computed at a time, each on a CUDA stream of its own.
        tile: as for `espan.Upscaler`.

    Raises:
        EspanError: another format, or an option that is invalid; CheckpointError as `espan.load`.
            While frames are computed, VapourSynth reports the errors of `Upscaler`.
    """
    varies = clip.format is None or 0 in (clip.width, clip.height)
    if varies or clip.format.id not in _DTYPES:
        found = "variable format or size" if varies else clip.format.name
        raise EspanError(
            f"got a clip of {found}; expected RGB24, RGBH or RGBS, e.g. "
            'clip.resize.Bicubic(format=vs.RGBH, matrix_in_s="709")'
        )
    for name, value, least in (("device_index", device_index, 0), ("num_streams", num_streams, 1)):
        if not isinstance(value, int) or value < least:
            raise EspanError(f"{name} must be an integer of {least} or more, got {value!r}")
    network = weights if isinstance(weights, Network) else checkpoints.load(weights)
    device = torch.device("cuda", device_index) if torch.cuda.is_available() else "cpu"
    idle: SimpleQueue[tuple[Upscaler, torch.cuda.Stream | None]] = SimpleQueue()
    for _ in range(num_streams):
        upscaler = Upscaler(network, device=device, dtype=_DTYPES[clip.format.id], tile=tile)
        idle.put((upscaler, None if device == "cpu" else torch.cuda.Stream(device)))
    if device != "cpu":
        torch.cuda.synchronize(device)  # the weights were copied on another stream

    def enlarge(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        source, result = f[0], f[1].copy()
        upscaler, stream = worker = idle.get()
        try:
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                image = upscaler(_read(source))
        finally:
            idle.put(worker)
        for plane, values in enumerate(image.numpy()):
            np.copyto(np.asarray(result[plane]), values)
        result.props.clear()
        result.props.update(source.props)
        return result

    s = network.scale
    blank = clip.std.BlankClip(width=s * clip.width, height=s * clip.height, keep=True)
    # A single ModifyFrame would compute one frame at a time.
    return blank.std.FrameEval(
        lambda n: blank.std.ModifyFrame([clip, blank], enlarge), clip_src=[clip, blank]
    )


def _read(frame: vs.VideoFrame) -> Tensor:
    """The planes of a frame as (3, H, W), copied; colours out of gamut are clamped.

    Legal values of YUV, at most -0.95 to 1.95 in RGB, lie there, and zimg does not clamp them.
    Larger values have another range, which the upscaler reports.
    """
    planes = torch.from_numpy(np.stack([np.asarray(frame[plane]) for plane in range(3)]))
    if planes.is_floating_point():
        low, high = torch.aminmax(planes)
        if -1 < low < 0 or 1 < high < 2:
            planes.clamp_(0 if low > -1 else None, 1 if high < 2 else None)
    return planes
