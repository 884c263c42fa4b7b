"""Copying samples between PyAV's frames and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from av import VideoFrame
from torch import Tensor

from espan.video.layout import Layout


def read_planes(frame: VideoFrame, layout: Layout, *, pinned: bool = False) -> list[Tensor]:
    """The samples of a frame, uint8 or uint16, in memory that a GPU can copy if `pinned`."""
    if frame.format.name.replace("yuvj", "yuv") != layout.name:
        frame = frame.reformat(format=layout.name, interpolation="BICUBIC")
    planes = []
    shapes = layout.shapes(frame.height, frame.width)
    for plane, (height, width) in zip(frame.planes, shapes, strict=True):
        dtype = torch.uint8 if layout.bits == 8 else torch.uint16
        copy = torch.empty((height, width), dtype=dtype, pin_memory=pinned)
        np.copyto(copy.numpy(), _samples(plane, layout)[:height, :width])
        planes.append(copy)
    return planes


def write_planes(frame: VideoFrame, layout: Layout, planes: Sequence[Tensor]) -> None:
    for plane, values in zip(frame.planes, planes, strict=True):
        height, width = values.shape
        np.copyto(_samples(plane, layout)[:height, :width], values.numpy())


def _samples(plane: Any, layout: Layout) -> np.ndarray:
    """A plane without a copy, with the padding of its rows."""
    dtype = np.uint8 if layout.bits == 8 else np.uint16
    return np.frombuffer(plane, dtype).reshape(plane.height, -1)
