"""Upscaling images of any kind: 8 or 16 bits, gray or RGB, with or without alpha, of any size."""

from __future__ import annotations

import math
import os
import threading
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from espan import checkpoints, pil_images
from espan.alpha import extend_colour
from espan.engines import Streamed
from espan.engines.plausible import PLAUSIBLE
from espan.errors import EspanError, RangeWarning, warn
from espan.fused import FusedNetwork
from espan.models import Network
from espan.tiling import Tile, tile_size, tiles

# Floating-point images may overshoot 0-1 a little; images in 0-255 must not pass as very bright.
_FLOAT_INPUT = (-0.5, 1.5)
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}

TileOption = int | Literal["auto"] | None
Weights = str | os.PathLike[str] | Network | FusedNetwork


def upscale(
    image: Any,
    weights: Weights | Upscaler = checkpoints.DEFAULT,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
    tile: TileOption = "auto",
    graph: bool = False,
) -> Any:
    """Upscale one image, or a list of them: `Upscaler(weights, ...)(image)`.

    It loads the weights each time.  For many images, create an `Upscaler` once and call it, or pass
    it as `weights`.  A tensor is upscaled on its own device, unless another is given.

    Raises and warns like `Upscaler`.  If `weights` is an `Upscaler`, any option raises EspanError.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend}
    options |= {"tile": tile, "graph": graph}
    if isinstance(weights, Upscaler):
        _refuse_options("an Upscaler", options)
        return weights(image)
    first = image[0] if isinstance(image, (list, tuple)) and image else image
    if device is None and isinstance(first, Tensor) and not isinstance(weights, FusedNetwork):
        options["device"] = first.device
    return Upscaler(weights, **options)(image)


class Upscaler:
    """Upscales images with the same weights.

    Args:
        weights: a file, the name of bundled weights, a plain `Network`, or a `FusedNetwork`, whose
            device, dtype and backend are used.
        device, dtype, backend, graph: as for `espan.fused.load`.  By default, 16-bit and
            floating-point images are computed in fp32 on a GPU too, because fp16 keeps 11 bits.
        tile: side of the tiles in LR pixels, None for no tiles, "auto" for tiles where a large
            image would otherwise take much memory.

    Raises:
        EspanError: an option that is invalid, not available or has no effect.
        CheckpointError: as `espan.load`.
    """

    def __init__(
        self,
        weights: Weights = checkpoints.DEFAULT,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "auto",
        tile: TileOption = "auto",
        graph: bool = False,
    ) -> None:
        number = isinstance(tile, int) and not isinstance(tile, bool) and tile >= 1
        if not (number or tile in ("auto", None)):
            raise EspanError(f"tile must be 'auto', None or a number of pixels, got {tile!r}")
        options: dict[str, Any] = {
            "device": device,
            "dtype": dtype,
            "backend": backend,
            "graph": graph,
        }
        if isinstance(weights, FusedNetwork):
            _refuse_options("a FusedNetwork", options)
            self._default = weights
        else:
            plain = weights if isinstance(weights, Network) else checkpoints.load(weights)
            self._default = FusedNetwork(plain, **options)
        self._tile = tile
        self._exact: FusedNetwork | None = None  # in full fp32, made when first needed
        self._lock = threading.Lock()  # so that `check` is about the image of this thread

    @property
    def scale(self) -> int:
        return self._default.scale

    @property
    def device(self) -> torch.device:
        return self._default.device

    @property
    def backend(self) -> str:
        return self._default.backend

    def __call__(self, image: Any) -> Any:
        """Upscale an image; the result is of the same kind, dtype and device.

        Args:
            image: a PIL image (of any mode; EXIF orientation is applied, the ICC profile kept), a
                NumPy array (H, W) or (H, W, C), a tensor (C, H, W) or (N, C, H, W), a file (the
                result is a PIL image), or a list of these (the result is a list).  C is 1 (gray),
                2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8, uint16, or floating point in 0-1.
                Gray is run as RGB and averaged; alpha is upscaled as gray.  The colour of fully
                transparent pixels is not used: visible colours are extended over them.

        Raises:
            EspanError: another shape or dtype, values that are not finite or far outside 0-1, or a
                result that is not finite even in fp32; ImageError for a file.

        Warns:
            RangeWarning: the output left the plausible range before it was clamped to 0-1.
        """
        if isinstance(image, (list, tuple)):
            return [self(each) for each in image]
        if isinstance(image, (str, os.PathLike)):
            return self(pil_images.read(image))
        if isinstance(image, Image.Image):
            pixels, finish = pil_images.to_array(image)
            return finish(self._pixels(torch.from_numpy(pixels)).numpy())
        if isinstance(image, np.ndarray):
            gray = image.ndim == 2
            try:
                pixels_in = torch.from_numpy(np.array(image[:, :, None] if gray else image))
            except (TypeError, ValueError) as error:
                raise EspanError(_expected(f"an array of {image.dtype}")) from error
            out = self._pixels(pixels_in).numpy()
            return out[:, :, 0] if gray else out
        if isinstance(image, Tensor):
            if image.ndim == 4:
                if len(image) == 0:
                    raise EspanError(_expected(f"a tensor of shape {tuple(image.shape)}"))
                return torch.stack(
                    [self._pixels(i.permute(1, 2, 0)).permute(2, 0, 1) for i in image]
                )
            if image.ndim == 3:
                return self._pixels(image.permute(1, 2, 0)).permute(2, 0, 1).contiguous()
            raise EspanError(_expected(f"a tensor of shape {tuple(image.shape)}"))
        raise EspanError(_expected(f"an object of type {type(image).__name__}"))

    def _pixels(self, pixels: Tensor) -> Tensor:
        """(H, W, C) -> (s*H, s*W, C), of the same dtype and on the same device."""
        _check(pixels)
        channels = pixels.shape[2]
        colours = channels if channels in (1, 3) else channels - 1
        with self._lock:
            if colours == channels:
                out, notes = self._run(pixels)
            else:
                # Of the whole image, so that the result does not depend on the tiles.
                pixels = extend_colour(pixels)
                out = self._empty(pixels)
                _, notes = self._run(pixels[..., :colours], out[..., :colours])
                alpha = pixels[..., colours:]
                if bool((alpha == alpha[0, 0]).all()):
                    out[..., colours:] = alpha[0, 0]  # opaque stays opaque
                else:
                    notes += self._run(alpha, out[..., colours:])[1]
        for note in dict.fromkeys(notes):
            warn(note, RangeWarning)
        return out

    def _run(self, pixels: Tensor, out: Tensor | None = None) -> tuple[Tensor, list[str]]:
        """Fill `out` (s*H, s*W, 1 or 3), or a new tensor; returns it and the warnings to issue."""
        height, width, channels = pixels.shape
        # fp16 would keep 11 bits of what has more than 8.
        by_default = self._default.options["dtype"] is None
        network = self._in_fp32() if by_default and pixels.dtype != torch.uint8 else self._default
        # RGB bytes are not converted first.  Gray is rounded only after it is averaged.
        as_bytes = pixels.dtype == torch.uint8 and channels == 3
        size = self._tile
        if size == "auto":
            # Streaming takes no more memory for a larger image, and its bytes are the result.
            streams = as_bytes and isinstance(network.engine, Streamed)
            size = None if streams else tile_size(height, width)
        notes = []
        halo, unshuffle = network.architecture.receptive_radius, network.architecture.unshuffle
        for tile in tiles(height, width, size, halo, unshuffle):
            y, x = tile
            part = pixels[y.read_start : y.read_stop, x.read_start : x.read_stop]
            batch = part.permute(2, 0, 1)[None].to(network.device)
            with torch.no_grad():
                result = network(batch if as_bytes else _to_float(batch))
                if not network.check():
                    result, note = self._recompute(batch, network.dtype)
                    notes.append(note)
            if out is None and size is None and result.dtype == torch.uint8:
                return result[0].permute(1, 2, 0).contiguous().to(pixels.device), notes
            if out is None:
                out = self._empty(pixels)
            s = self.scale
            target = out[s * y.start : s * y.stop, s * x.start : s * x.stop]
            _put(self._core(result, tile), target)
        assert out is not None  # there is at least one tile
        return out, notes

    def _empty(self, pixels: Tensor) -> Tensor:
        height, width, channels = pixels.shape
        size = (self.scale * height, self.scale * width, channels)
        return torch.empty(size, dtype=pixels.dtype, device=pixels.device)

    def _recompute(self, batch: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
        """Recompute in fp32 a tile whose output left the plausible range in `dtype`."""
        exact = self._in_fp32()
        result = exact(_to_float(batch))
        if exact.check():
            return result, (
                f"the output left the plausible range in {dtype}; "
                "the affected parts were computed again in fp32"
            )
        if not result.isfinite().all():
            raise EspanError("the network's output is not finite, even in fp32")
        return result, (
            f"the output left the plausible range ({PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}) before it "
            "was clamped to 0-1: the network is unstable on this image, and its result may be wrong"
        )

    def _core(self, result: Tensor, tile: Tile) -> Tensor:
        """A tile's result without the halo."""
        (y, x), s = tile, self.scale
        rows = slice(s * (y.start - y.read_start), s * (y.stop - y.read_start))
        columns = slice(s * (x.start - x.read_start), s * (x.stop - x.read_start))
        return result[:, :, rows, columns]

    def _in_fp32(self) -> FusedNetwork:
        options = self._default.options
        if options["dtype"] == torch.float32:
            return self._default
        if self._exact is None:
            exact = {**options, "device": self.device, "dtype": torch.float32}
            self._exact = FusedNetwork(self._default.plain, **exact)
        return self._exact


def _to_float(batch: Tensor) -> Tensor:
    """(1, C, h, w) -> (1, 3, h, w) fp32 in 0-1."""
    values = batch.to(torch.float32) / _LEVELS.get(batch.dtype, 1)
    return values if values.shape[1] == 3 else values.expand(-1, 3, -1, -1)


def _put(result: Tensor, out: Tensor) -> None:
    """(1, 3, h, w) -> (h, w, 3) or, averaged, (h, w, 1) in the dtype of `out`.

    Bytes are copied; floating point is clamped, and rounded if `out` holds integers.
    """
    image = result[0]
    if image.is_floating_point():
        image = image.to(torch.float32)
        if out.shape[2] == 1:
            image = image.mean(dim=0, keepdim=True)
        image = image.clamp(0, 1)
        if out.dtype in _LEVELS:
            image = (image * _LEVELS[out.dtype]).round_().to(torch.int32)
    out.copy_(image.permute(1, 2, 0))


def _check(pixels: Tensor) -> None:
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or pixels.numel() == 0:
        raise EspanError(_expected(f"pixels of shape {tuple(pixels.shape)}"))
    if pixels.dtype in _LEVELS:
        return
    if not pixels.is_floating_point():
        raise EspanError(_expected(f"pixels of {pixels.dtype}"))
    low, high = (v.item() for v in pixels.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise EspanError("the image holds NaN or infinite values")
    if low < _FLOAT_INPUT[0] or high > _FLOAT_INPUT[1]:
        raise EspanError(
            f"floating-point pixels must lie in 0-1; these range from {low:.4g} to {high:.4g}; "
            "divide by 255 (or 65535), or pass uint8 (or uint16)"
        )


def _refuse_options(given: str, options: dict[str, Any]) -> None:
    """Raise for an option that is not at its default: it would have no effect."""
    defaults = {"backend": "auto", "tile": "auto", "graph": False}
    for name, value in options.items():
        if value != defaults.get(name):
            raise EspanError(
                f"{name}={value!r} has no effect with {given}, which has its own; "
                f"pass {name} when creating that"
            )


def _expected(found: str) -> str:
    return (
        f"got {found}; expected a file, a PIL image, an array (H, W) or (H, W, C), or a tensor "
        "(C, H, W) or (N, C, H, W), with C from 1 to 4, in uint8, uint16 or floating point 0-1"
    )
