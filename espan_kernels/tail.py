"""The last layers as one op: function, weight packing, reference on packed weights."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from espan_kernels import _checks, _library, reference
from espan_kernels.packing import cuda_fragments
from espan_kernels.packing.feature_maps import padded, to_nchw

OP = "espan::tail"


def tail(
    head: Tensor,
    first: Tensor,
    last: Tensor,
    activation: Tensor | None,
    packed: Tensor,
    channels: int,
    scale: int,
    dtype: torch.dtype,
    flag: Tensor | None = None,
) -> Tensor:
    """Run the last layers in one launch: folded concat, 3x3 to 3 s^2 channels, pixel shuffle.

    Equivalent to :func:`espan_kernels.reference.tail` with ``sides = [head, first(, activation)]``.

    Args:
        head: the output of :func:`espan_kernels.head`, feature maps (N, H, W, P), contiguous.
        first: the output of the first block, like ``head``.
        last: the output of the last block, like ``head``.
        activation: the first activation of the last block (SPAN), like ``head``; or None.
        packed: the result of :func:`pack_tail`, with the dtype and device of the feature maps.
        channels: the number of channels C, up to 64.
        scale: the upscaling factor s, 1 to 4.
        dtype: the dtype of the image: uint8 (clamped to 0-1, times 255, rounded), or float16,
            bfloat16 or float32 (not clamped).
        flag: int32, one element; set to 1 if any value before clamping is outside [-1, 2] or not
            finite, and otherwise left unchanged.  No photograph causes such values.

    Returns:
        The image batch (N, 3, s H, s W).  uint8 images have NHWC strides, so that
        ``permute(0, 2, 3, 1)`` returns a contiguous tensor; the others are contiguous.

    Raises:
        RuntimeError: if the inputs do not match, or one of them requires a gradient.
    """
    return torch.ops.espan.tail(head, first, last, activation, packed, channels, scale, dtype, flag)


def pack_tail(
    last_weight: Tensor,
    side_weight: Tensor,
    bias: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Pack the weights of :func:`espan_kernels.reference.tail` for :func:`tail`.

    ``dtype``, ``device`` and the result are as for :func:`espan_kernels.pack_spab`.
    """
    channels, sides = bias.shape[0], side_weight.shape[1] // bias.shape[0]
    scale = round((up_bias.shape[0] / 3) ** 0.5)
    _check(channels, scale, sides)
    _checks.check_dtype("pack_tail", dtype)
    shapes = {
        "last_weight": (last_weight, (channels, channels, 3, 3)),
        "side_weight": (side_weight, (channels, sides * channels, 1, 1)),
        "up_weight": (up_weight, (3 * scale * scale, channels, 3, 3)),
        "up_bias": (up_bias, (3 * scale * scale,)),
    }
    for name, (weight, shape) in shapes.items():
        _checks.check_weight("pack_tail", name, weight, shape)
    wide = [t.detach().double().cpu() for t in (last_weight, side_weight, up_weight)]
    p = padded(channels)
    biases = [
        cuda_fragments.pad(bias.detach().double().cpu(), p)[cuda_fragments.output_order(p)],
        _up_rows(up_bias.detach().double().cpu(), scale),
    ]
    streamed = _pack_streamed(*wide) if cuda_fragments.is_streamed(p) else []
    return cuda_fragments.join(_pack(*wide), biases, dtype, streamed).to(device)


def _up_rows(rows: Tensor, scale: int) -> Tensor:
    """Reorder the rows (rgb, dy, dx) of the upsampling convolution to the order of output tiles.

    Lane q of a quad holds the 3 r values of r adjacent pixels of the result.  For s > 2, r = s: the
    lane stores one row of the s x s pixels.  Otherwise r = 1: it stores pixel q of the s x s.
    """
    run = scale if scale > 2 else 1
    tiles = 6 if scale > 2 else 2
    lanes = rows.view(3, scale * scale // run, run, -1).permute(1, 2, 0, 3)  # q, pixel, rgb
    lanes = cuda_fragments.pad(lanes.reshape(scale * scale // run, 3 * run, -1), 4, 2 * tiles)
    # tile j, column (q, e) is value 2 j + e of lane q
    order = lanes.view(4, tiles, 2, -1).transpose(0, 1)
    return order.reshape(8 * tiles, *rows.shape[1:])


def _rows(last: Tensor, side: Tensor, up: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The weights with padded channels, and their rows in the order of the output tiles."""
    channels = last.shape[0]
    p = padded(channels)
    order = cuda_fragments.output_order(p)
    sides = [cuda_fragments.pad(s.flatten(1), p, p)[order] for s in side.split(channels, 1)]
    scale = round((up.shape[0] / 3) ** 0.5)
    rows = _up_rows(up.flatten(1), scale).view(-1, channels, 9)
    rows = cuda_fragments.pad(rows.transpose(0, 1), p).transpose(0, 1).reshape(-1, p, 3, 3)
    return cuda_fragments.pad(last, p, p)[order], sides, rows


def _pack(*weights: Tensor) -> list[Tensor]:
    last, sides, up = _rows(*weights)
    conv3x3, conv1x1 = cuda_fragments.conv3x3, cuda_fragments.conv1x1
    return [conv3x3(last), *(conv1x1(s) for s in sides), conv3x3(up)]


def _pack_streamed(*weights: Tensor) -> list[Tensor]:
    last, sides, up = _rows(*weights)
    conv3x3, conv1x1 = cuda_fragments.streamed_conv3x3, cuda_fragments.streamed_conv1x1
    apart = cuda_fragments.taps_apart(last.shape[0])
    return [conv3x3(last, apart=apart), *(conv1x1(s) for s in sides), conv3x3(up, apart=False)]


def _shapes(channels: int, scale: int, sides: int) -> list[tuple[int, ...]]:
    return [
        (channels, channels, 3, 3),
        (channels, sides * channels, 1, 1),
        (3 * scale * scale, channels, 3, 3),
    ]


def _pack_numbers(channels: int, scale: int, sides: int) -> Tensor:
    shapes = _shapes(channels, scale, sides)
    counts = [torch.Size(shape).numel() for shape in shapes]
    numbers = torch.arange(1, sum(counts) + 1).split(counts)
    views = (n.view(shape) for n, shape in zip(numbers, shapes, strict=True))
    return torch.cat(_pack(*views))


def _bias_numbers(scale: int) -> Tensor:
    return _up_rows(torch.arange(1, 3 * scale * scale + 1), scale)


def sizes(channels: int, scale: int, sides: int) -> cuda_fragments.Sizes:
    """The sizes of the parts of a packed tensor."""
    p, up = padded(channels), 48 if scale > 2 else 16
    size = cuda_fragments.streamed_size
    streamed = size(p, p, apart=cuda_fragments.taps_apart(p)) + size(p, up, apart=False)
    streamed = streamed + sides * p * p if cuda_fragments.is_streamed(p) else 0
    return cuda_fragments.Sizes(p * (9 * p + sides * p + 9 * up), p + up, streamed)


def unpack(
    packed: Tensor, channels: int, scale: int, sides: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """last_weight, side_weight, bias, up_weight and up_bias in ``packed``."""
    p = padded(channels)
    flat, biases = sizes(channels, scale, sides).split(packed)
    order = cuda_fragments.inverse(_pack_numbers, channels, scale, sides).to(packed.device)
    shapes = _shapes(channels, scale, sides)
    parts = flat[order].split([torch.Size(shape).numel() for shape in shapes])
    last, side, up = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    bias = cuda_fragments.natural(biases[:p], p)[:channels]
    up_bias = biases[p:][cuda_fragments.inverse(_bias_numbers, scale).to(packed.device)]
    return last, side, bias.to(packed.dtype), up, up_bias.to(packed.dtype)


def _check(channels: int, scale: int, sides: int) -> None:
    _checks.check_channels(OP, channels)
    if not 1 <= scale <= 4:
        raise RuntimeError(f"{OP}: scale is {scale}; it must be 1 to 4")
    if sides not in (2, 3):
        raise RuntimeError(f"{OP}: the concat has {sides} sides; it must have 2 or 3")


class TailInputs(NamedTuple):
    """The arguments of :func:`tail`, in order."""

    head: Tensor
    first: Tensor
    last: Tensor
    activation: Tensor | None
    packed: Tensor
    channels: int
    scale: int
    dtype: torch.dtype
    flag: Tensor | None

    @property
    def sides(self) -> dict[str, Tensor]:
        """The inputs of the concat other than the output of the last block, by name."""
        sides = {"head": self.head, "first": self.first}
        return sides if self.activation is None else sides | {"activation": self.activation}

    def check(self) -> None:
        """Check the arguments."""
        last, count = self.last, len(self.sides)
        _check(self.channels, self.scale, count)
        _checks.check_features(OP, "last", last, padded(self.channels))
        for name, t in self.sides.items():
            _checks.check_features_like(OP, name, t, "last", last)
        _checks.check_device(OP, "packed", self.packed, "last", last)
        size = sizes(self.channels, self.scale, count).total(last.dtype)
        _checks.check_packed(OP, self.packed, last.dtype, size)
        if self.dtype not in _checks.IMAGE_DTYPES:
            raise RuntimeError(
                f"{OP}: dtype is {self.dtype}; it must be uint8, float16, bfloat16, float32"
            )
        if self.flag is not None:
            _checks.check_device(OP, "flag", self.flag, "last", last)
            if self.flag.dtype != torch.int32 or self.flag.numel() != 1:
                raise RuntimeError(f"{OP}: flag must be one int32 element")

    def empty_image(self) -> Tensor:
        """An uninitialised tensor for the result."""
        n, height, width, _ = self.last.shape
        height, width = self.scale * height, self.scale * width
        if self.dtype == torch.uint8:
            return self.last.new_empty(n, height, width, 3, dtype=self.dtype).permute(0, 3, 1, 2)
        return self.last.new_empty(n, 3, height, width, dtype=self.dtype)


def tail_by_reference(*inputs: Any) -> Tensor:
    """:func:`tail` in plain PyTorch."""
    t = TailInputs(*inputs)
    t.check()
    sides = [to_nchw(side, t.channels) for side in t.sides.values()]
    weights = unpack(t.packed, t.channels, t.scale, len(sides))
    image = reference.tail(to_nchw(t.last, t.channels), sides, *weights, t.scale)
    if t.flag is not None:
        t.flag.bitwise_or_(~((image >= -1) & (image <= 2)).all())
    if t.dtype != torch.uint8:
        return image.to(t.dtype).contiguous()
    levels = (image.float().nan_to_num(0).clamp(0, 1) * 255).round()
    return levels.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@torch.library.register_fake(OP)
def _(*inputs: Any) -> Tensor:
    t = TailInputs(*inputs)
    t.check()
    return t.empty_image()


_library.implement("tail", tail_by_reference)
_library.refuse_gradients("tail")
