"""Upscaling images of any kind: 8 or 16 bits, gray or RGB, with or without alpha, of any size."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from espan import checkpoints, pil_images
from espan.alpha import extend_colour
from espan.engines import Streamed
from espan.engines.plausible import PLAUSIBLE
from espan.errors import EspanError, NonFiniteError, RangeWarning, warn
from espan.fused import FusedNetwork
from espan.models import Network
from espan.tiling import LARGEST_UNTILED, Tile, tile_size, tiles

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
    """Upscales images with the same weights.  It can be pickled, e.g. for a process pool.

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
                result is a PIL image), or a list of these (the result is a list).  On a GPU,
                neighbours in a list that have the same size and dtype share a call of the network.
                C is 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha); uint8, uint16, or
                floating point in 0-1.
                Gray is run as RGB and averaged; alpha is upscaled as gray.  The colour of fully
                transparent pixels is not used: visible colours are extended over them.

        Raises:
            EspanError: another shape or dtype, values that are not finite or far outside 0-1, or a
                result that is not finite even in fp32; ImageError for a file.

        Warns:
            RangeWarning: the output left the plausible range before it was clamped to 0-1.
        """
        if isinstance(image, (list, tuple)):
            return [result for batch in self._batches(image) for result in self._results(batch)]
        return self._results([_prepare(image)])[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(Upscaler, tile=self._tile), (self._default,)

    def _batches(self, images: Iterable[Any]) -> Iterator[list[_Prepared]]:
        """Consecutive images of the same kind that one call of the network may take."""
        batch: list[_Prepared] = []
        for image in images:
            each = _prepare(image)
            if batch and (
                each.kind != batch[0].kind
                or sum(len(b.pixels) for b in batch) >= self._together(each.pixels)
            ):
                yield batch
                batch = []
            batch.append(each)
        if batch:
            yield batch

    def _results(self, batch: list[_Prepared]) -> list[Any]:
        if len(batch) == 1:
            return [batch[0].finish(self._pixels(batch[0].pixels))]
        out = self._pixels(torch.cat([each.pixels for each in batch]))
        counts = [len(each.pixels) for each in batch]
        return [each.finish(pixels) for each, pixels in zip(batch, out.split(counts), strict=True)]

    def _together(self, pixels: Tensor) -> int:
        """How many images (H, W) the network takes in one call."""
        if self.device.type == "cpu":  # where images are computed one after the other anyway
            return 1
        _, height, width, _ = pixels.shape
        # Other images may be computed in fp32, by an engine that takes more memory.
        most = self._default.most_pixels if pixels.dtype == torch.uint8 else LARGEST_UNTILED
        return max(1, most // (height * width))

    def _network(self, pixels: Tensor) -> FusedNetwork:
        # fp16 would keep 11 bits of what has more than 8.
        by_default = self._default.options["dtype"] is None
        return self._in_fp32() if by_default and pixels.dtype != torch.uint8 else self._default

    def _pixels(self, pixels: Tensor) -> Tensor:
        """(N, H, W, C) -> (N, s*H, s*W, C), of the same dtype and on the same device."""
        _check(pixels)
        channels = pixels.shape[3]
        colours = channels if channels in (1, 3) else channels - 1
        with self._default.lock:
            if colours == channels:
                out, notes = self._run(pixels)
            else:
                # Of the whole image, so that the result does not depend on the tiles.
                pixels = torch.stack([extend_colour(each) for each in pixels])
                out = self._empty(pixels)
                _, notes = self._run(pixels[..., :colours], out[..., :colours])
                for image, alpha in zip(out, pixels[..., colours:], strict=True):
                    if bool((alpha == alpha[0, 0]).all()):
                        image[..., colours:] = alpha[0, 0]  # opaque stays opaque
                    else:
                        notes += self._run(alpha[None], image[None, ..., colours:])[1]
        for note in dict.fromkeys(notes):
            warn(note, RangeWarning)
        return out

    def _run(self, pixels: Tensor, out: Tensor | None = None) -> tuple[Tensor, list[str]]:
        """Fill `out` (N, s*H, s*W, 1 or 3), or a new tensor; returns it and the warnings."""
        count, height, width, channels = pixels.shape
        network = self._network(pixels)
        # RGB bytes are not converted first.  Gray is rounded only after it is averaged.
        as_bytes = pixels.dtype == torch.uint8 and channels == 3
        size = self._tile
        if size == "auto":
            # Streaming takes no more memory for a larger image, and its bytes are the result.
            streams = as_bytes and isinstance(network.engine, Streamed)
            size = None if streams else tile_size(height, width, network.most_pixels)
        halo, unshuffle = network.architecture.receptive_radius, network.architecture.unshuffle
        s, together, notes = self.scale, self._together(pixels), []
        for first in range(0, count, together):
            some = slice(first, first + together)
            for tile in tiles(height, width, size, halo, unshuffle):
                y, x = tile
                part = pixels[some, y.read_start : y.read_stop, x.read_start : x.read_stop]
                batch = part.permute(0, 3, 1, 2).to(network.device)
                results, note = self._compute(network, batch, as_bytes=as_bytes)
                notes += note
                whole = out is None and size is None and together >= count
                if whole and isinstance(results, Tensor) and results.dtype == torch.uint8:
                    return results.permute(0, 2, 3, 1).contiguous().to(pixels.device), notes
                if out is None:
                    out = self._empty(pixels)
                target = out[some, s * y.start : s * y.stop, s * x.start : s * x.stop]
                for result, image in zip(results, target, strict=True):
                    _put(self._core(result, tile), image)
        assert out is not None  # there is at least one tile
        return out, notes

    def _empty(self, pixels: Tensor) -> Tensor:
        count, height, width, channels = pixels.shape
        size = (count, self.scale * height, self.scale * width, channels)
        return torch.empty(size, dtype=pixels.dtype, device=pixels.device)

    def _compute(
        self, network: FusedNetwork, batch: Tensor, *, as_bytes: bool
    ) -> tuple[Tensor | list[Tensor], list[str]]:
        """The results (3, s*h, s*w) of images (N, C, h, w), and the warnings to issue."""
        with torch.no_grad():
            network.flag.zero_()  # set by calls of the network that were not checked
            result = network(batch if as_bytes else _to_float(batch))
            if network.check():
                return result, []
            if len(batch) == 1:
                result, note = self._recompute(batch, network.dtype)
                return result, [note]
        # One of them left the range.  The others' results must not depend on it.
        parts = [self._compute(network, image[None], as_bytes=as_bytes) for image in batch]
        return [part[0] for part, _ in parts], [note for _, notes in parts for note in notes]

    def _recompute(self, batch: Tensor, dtype: torch.dtype) -> tuple[Tensor, str]:
        """Recompute in fp32 a tile whose output left the plausible range in `dtype`."""
        exact = self._in_fp32()
        result = exact(_to_float(batch))
        if exact.check():
            where = "" if dtype == torch.float32 else f" in {dtype}"
            return result, (
                f"the output left the plausible range{where}; "
                "the affected parts were computed again in full fp32"
            )
        if not result.isfinite().all():
            raise NonFiniteError("the network's output is not finite, even in fp32")
        return result, (
            f"the output left the plausible range ({PLAUSIBLE[0]:g} to {PLAUSIBLE[1]:g}) before it "
            "was clamped to 0-1: the network is unstable on this image, and its result may be wrong"
        )

    def _core(self, result: Tensor, tile: Tile) -> Tensor:
        """A tile's result (3, ...) without the halo."""
        (y, x), s = tile, self.scale
        rows = slice(s * (y.start - y.read_start), s * (y.stop - y.read_start))
        columns = slice(s * (x.start - x.read_start), s * (x.stop - x.read_start))
        return result[:, rows, columns]

    def _in_fp32(self) -> FusedNetwork:
        options = self._default.options
        if options["dtype"] == torch.float32:
            return self._default
        if self._exact is None:
            exact = {**options, "device": self.device, "dtype": torch.float32}
            self._exact = FusedNetwork(self._default.plain, **exact)
        return self._exact


class _Prepared(NamedTuple):
    """An image as pixels (N, H, W, C), and what turns the result into the image's kind."""

    pixels: Tensor
    finish: Callable[[Tensor], Any]

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for images that may share a batch."""
        return self.pixels.shape[1:], self.pixels.dtype, self.pixels.device


def _prepare(image: Any) -> _Prepared:
    if isinstance(image, (str, os.PathLike)):
        image = pil_images.read(image)
    if isinstance(image, Image.Image):
        array, finish = pil_images.to_array(image)
        return _Prepared(torch.from_numpy(array)[None], lambda out: finish(out[0].numpy()))
    if isinstance(image, np.ndarray):
        gray = image.ndim == 2
        try:
            pixels = torch.from_numpy(np.array(image[:, :, None] if gray else image))
        except (TypeError, ValueError) as error:
            raise EspanError(_expected(f"an array of {image.dtype}")) from error
        if gray:
            return _Prepared(pixels[None], lambda out: out[0, :, :, 0].numpy())
        return _Prepared(pixels[None], lambda out: out[0].numpy())
    if not isinstance(image, Tensor):
        raise EspanError(_expected(f"an object of type {type(image).__name__}"))
    if image.ndim == 4 and len(image) > 0:
        return _Prepared(
            image.permute(0, 2, 3, 1), lambda out: out.permute(0, 3, 1, 2).contiguous()
        )
    if image.ndim == 3:
        return _Prepared(
            image.permute(1, 2, 0)[None], lambda out: out[0].permute(2, 0, 1).contiguous()
        )
    raise EspanError(_expected(f"a tensor of shape {tuple(image.shape)}"))


def _to_float(batch: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, 3, h, w) fp32 in 0-1."""
    values = batch.to(torch.float32) / _LEVELS.get(batch.dtype, 1)
    return values if values.shape[1] == 3 else values.expand(-1, 3, -1, -1)


def _put(image: Tensor, out: Tensor) -> None:
    """(3, h, w) -> (h, w, 3) or, averaged, (h, w, 1) in the dtype of `out`.

    Bytes are copied; floating point is clamped, and rounded if `out` holds integers.
    """
    if image.is_floating_point():
        image = image.to(torch.float32)
        if out.shape[2] == 1:
            image = image.mean(dim=0, keepdim=True)
        image = image.clamp(0, 1)
        if out.dtype in _LEVELS:
            image = (image * _LEVELS[out.dtype]).round_().to(torch.int32)
    out.copy_(image.permute(1, 2, 0))


def _check(pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 2, 3, 4) or pixels.numel() == 0:
        raise EspanError(_expected(f"pixels of shape {tuple(pixels.shape[1:])}"))
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
